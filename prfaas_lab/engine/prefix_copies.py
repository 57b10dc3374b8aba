"""Prefixes between caches: what one lends for a copy, and where the copy lands in another.

Both ends are on the budget of their pool. What is sent stays where it is, pinned, until it has arrived;
what arrives is a transfer-cache entry that grows with it, until it is taken in.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from prfaas_lab.engine.kept import Segment, by_boundary, to_keep
from prfaas_lab.engine.prefix_cache import PrefixCache
from prfaas_lab.errors import EngineError
from prfaas_lab.kvcache import CacheError, Lease, Prompt
from prfaas_lab.model.buffers import Produced, SegmentRefused
from prfaas_lab.model.layout import CacheLayout, SegmentKey

_KINDS = ("growing", "state")


@dataclass(frozen=True, slots=True)
class Loan:
    """What another cache lacks to resume from `tokens`: to be sent within `with`."""

    tokens: int
    segments: list[Segment]
    lease: Lease

    @classmethod
    def of_prefix(cls, cache: PrefixCache, prompt: Prompt, held_tokens: int) -> Loan:
        """For a cache that has `held_tokens` of the blocks: how far this one reaches, and what the other
        lacks of it, the snapshot included."""
        lease = cache.intact(prompt)
        lacking = list(lease.blocks[held_tokens // cache.layout.chunk_tokens :])
        if lease.snapshot is not None:
            lacking.append(lease.snapshot)
        return cls(lease.tokens, [segment for kept in lacking for segment in kept.segments], lease)

    @classmethod
    def of_answer(cls, cache: PrefixCache, prompt: Prompt, held_tokens: int, produced: Produced) -> Loan:
        """The same of a prompt that ends with an answer, whose blocks are kept here too: a decode engine
        need not be sent them again. Raises EngineError when blocks before it are neither there nor here."""
        width = cache.layout.chunk_tokens
        blocks, _ = by_boundary(cache.layout, produced.segments)
        cache.pool.insert(prompt, to_keep(blocks, produced.first_token), {})
        before = prompt.beginning(produced.first_token // width if held_tokens < produced.first_token else 0)
        lease = cache.intact(before, usable=False)
        if len(lease.blocks) < len(before.blocks):
            lease.release()
            raise EngineError("blocks before the answer are gone", remedy="raise the datacenter's cache")
        lacking = [segment for kept in lease.blocks[held_tokens // width :] for segment in kept.segments]
        beyond = [
            (key, segment) for key, segment in produced.segments
            if cache.layout.part(key).kind == "state" or key.chunk * width >= held_tokens
        ]  # fmt: skip
        return cls(produced.tokens, [*lacking, *beyond], lease)

    def __enter__(self) -> Loan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lease.release()


class Landing:
    """Where a copy's segments go until all of them are there. What is held of the prompt already stays,
    for the copy goes on from it."""

    def __init__(self, cache: PrefixCache, prompt: Prompt) -> None:
        self._cache, self._prompt = cache, prompt
        self._held = cache.pool.retain(prompt)
        self._room = cache.pool.stage(None, 0)
        self._memory: dict[SegmentKey, bytearray] = {}

    @property
    def held_tokens(self) -> int:
        """Of these the blocks are here."""
        return self._held.tokens

    def destination(self, key: SegmentKey, nbytes: int) -> memoryview:
        """Raises SegmentRefused for what belongs to no block of the prompt, and where there is no room."""
        memory = self._memory.get(key)
        if memory is None:
            memory = self._memory[key] = self._new(key, nbytes)
        elif len(memory) != nbytes:
            raise SegmentRefused(f"{key} came with {nbytes} bytes after {len(memory)}")
        return memoryview(memory)

    def adopt(self, *, decoded_from: int | None = None) -> int:
        """Take in what has come; how many tokens can be resumed from now. Blocks from `decoded_from` on
        were completed by a decode engine."""
        layout, memory = self._cache.layout, self._memory
        found = by_boundary(layout, ((key, memoryview(memory[key])) for key in sorted(memory)))
        blocks, snapshots = (
            {at: segments for at, segments in each.items() if len(segments) == whole}
            for each, whole in zip(found, _segments_of(layout), strict=True)
        )
        self._room.release()
        return self._cache.pool.insert(
            self._prompt, to_keep(blocks, decoded_from), to_keep(snapshots)
        ).usable_tokens

    def __enter__(self) -> Landing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._memory.clear()
        self._room.__exit__(kind, error, trace)
        self._held.release()

    def _new(self, key: SegmentKey, nbytes: int) -> bytearray:
        layout = self._cache.layout
        if not (
            key.layer < len(layout.layers)
            and key.part < len(layout.layers[key.layer].parts)
            and key.chunk < len(self._prompt.blocks)
            and nbytes == layout.segment_bytes(key, (key.chunk + 1) * layout.chunk_tokens)
        ):
            raise SegmentRefused(f"{key} of {nbytes} bytes belongs to no block of this prefix")
        try:
            self._room.grow(nbytes)
        except CacheError as error:
            raise SegmentRefused(error.what) from error
        return bytearray(nbytes)


def _segments_of(layout: CacheLayout) -> tuple[int, ...]:
    """How many segments a whole block has, and a whole snapshot."""
    return tuple(sum(p.kind == kind for each in layout.layers for p in each.parts) for kind in _KINDS)
