"""An engine's share of the prefix cache: segments of KVCache kept in a pool, checked, and found again.

What is kept are the very segments that cross the wire, so that nothing is converted on the way in or
out. A block holds the growing segments of one prefill chunk, a snapshot the states at a chunk boundary.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from prfaas_lab.engine.executor import Emit
from prfaas_lab.engine.kept import Kept, Segment
from prfaas_lab.engine.spill import SpillTier
from prfaas_lab.errors import EngineError
from prfaas_lab.kvcache import CacheError, Geometry, Pool, Prompt, Tier, Transfer
from prfaas_lab.kvcache.eviction import DEFAULT_EVICTION
from prfaas_lab.kvcache.snapshots import DEFAULT_SNAPSHOTS
from prfaas_lab.model.buffers import IncomingCache, Produced, SegmentRefused, chunk_spans
from prfaas_lab.model.layout import CacheLayout, SegmentKey

_KINDS = ("growing", "state")


def pool_of(
    geometry: Geometry,
    budget_bytes: int,
    *,
    resumable: bool,
    snapshots: str = DEFAULT_SNAPSHOTS,
    snapshot_every: int | None = None,
    eviction: str = DEFAULT_EVICTION,
    spill: Tier | None = None,
) -> Pool:
    """An engine's pool, real or simulated, and its second tier. Without snapshots, where it need not
    resume."""
    return Pool(
        geometry if resumable else replace(geometry, snapshot_bytes=0),
        budget_bytes,
        snapshots=snapshots,
        snapshot_every_tokens=snapshot_every,
        eviction=eviction,
        spill=spill,
    )


@dataclass(frozen=True, slots=True)
class Found:
    """A prefix to resume from, complete. `decoded_tokens` of it lie in blocks that a decode engine
    completed when they were part of an answer."""

    cache: IncomingCache
    decoded_tokens: int

    @property
    def cached_tokens(self) -> int:
        return self.cache.tokens


class PrefixCache:
    """One engine's pool. Lookups copy out, so nothing stays pinned while a prompt waits or computes.

    A pool of geometry without snapshots serves a decode engine: it need never resume, only know the
    tokens whose KVCache need not be sent to it again.
    """

    def __init__(self, layout: CacheLayout, pool: Pool, spill: SpillTier | None = None) -> None:
        """`spill`: the pool's second tier."""
        assert pool.geometry.block_tokens == layout.chunk_tokens, "a block is one chunk"
        self.layout, self.pool, self._spill = layout, pool, spill

    @classmethod
    def of(
        cls,
        layout: CacheLayout,
        budget_bytes: int,
        *,
        resumable: bool,
        snapshots: str = DEFAULT_SNAPSHOTS,
        snapshot_every: int | None = None,
        eviction: str = DEFAULT_EVICTION,
        spill: SpillTier | None = None,
    ) -> PrefixCache:
        """A pool of so many bytes, with snapshots to resume from or without. `snapshots` and `eviction`
        name policies of the pool."""
        pool = pool_of(
            Geometry.of(layout),
            budget_bytes,
            resumable=resumable,
            snapshots=snapshots,
            snapshot_every=snapshot_every,
            eviction=eviction,
            spill=spill,
        )
        return cls(layout, pool, spill)

    def close(self) -> None:
        """Give back memory and files."""
        self.pool.close()

    @asynccontextmanager
    async def at_hand(self, prompt: Prompt, *, to_keep: bool = False) -> AsyncIterator[None]:
        """Within, a lookup of `prompt` need not wait for the disk; or, `to_keep`, taking in more of it."""
        keys = self.pool.on_disk(prompt, to_insert=to_keep) if self._spill else ()
        if self._spill is None or not keys:
            yield
            return
        try:
            await self._spill.read_ahead(keys)
            yield
        finally:
            self._spill.let_go(keys)

    def load(self, prompt: Prompt) -> Found | None:
        """The longest prefix of `prompt` that can be resumed from, complete; None when nothing is held."""
        while True:
            with self.pool.acquire(prompt) as lease:
                tokens = lease.tokens
                held: list[Kept] = [*lease.blocks, lease.snapshot] if lease.snapshot else list(lease.blocks)
            if tokens == 0:
                return None
            if self._drop_damaged(prompt, held, tokens):
                continue
            cache = IncomingCache(self.layout, tokens)
            for kept in held:
                _copy(kept, cache)
            decoded = sum(kept.decoded for kept in held[: tokens // self.layout.chunk_tokens])
            return Found(cache, decoded * self.layout.chunk_tokens)

    def fill(self, prompt: Prompt, incoming: IncomingCache) -> int:
        """Copy what is held of a prompt's growing cache into its reservation; how many tokens that is."""
        while True:
            with self.pool.acquire(prompt) as lease:
                tokens, held = lease.tokens, list(lease.blocks)
            if not self._drop_damaged(prompt, held, tokens):
                break
        for kept in held:
            _copy(kept, incoming)
            incoming.held.update(key for key, _ in kept.segments)
        return tokens

    def snapshots_for(self, prompt: Prompt) -> tuple[int, ...]:
        """The boundaries, in tokens, whose state is worth keeping when `prompt` is prefilled."""
        return self.pool.wanted_snapshots(prompt)

    def keep(self, prompt: Prompt, computed: Computed) -> None:
        """Take in what a prefill computed."""
        self.pool.insert(prompt, _kept(computed.blocks), _kept(computed.snapshots))

    def keep_received(self, prompt: Prompt, cache: IncomingCache) -> None:
        """Take in the complete blocks of a cache that was received; its memory stays the caller's."""
        held = self.pool.match(prompt).known_tokens
        blocks = {}
        for first, end in chunk_spans(cache.tokens, self.layout.chunk_tokens, start=held):
            if end - first == self.layout.chunk_tokens:
                blocks[first] = _block_of(cache, first)
        self.pool.insert(prompt, _kept(blocks), {})

    def segments_beyond(self, prompt: Prompt, held_tokens: int) -> tuple[int, list[Segment]]:
        """For a copy to another cache, which has `held_tokens` of the blocks: how far this one reaches,
        and what the other lacks of it, the snapshot included."""
        while True:
            with self.pool.acquire(prompt) as lease:
                tokens, blocks, snapshot = lease.tokens, list(lease.blocks), lease.snapshot
            kept: list[Kept] = blocks if snapshot is None else [*blocks, snapshot]
            if not self._drop_damaged(prompt, kept, tokens):
                break
        lacking = (
            kept[held_tokens // self.layout.chunk_tokens :] if tokens > held_tokens else kept[len(blocks) :]
        )
        return tokens, [segment for each in lacking for segment in each.segments]

    def adopt(
        self, prompt: Prompt, segments: Mapping[SegmentKey, memoryview], *, decoded_from: int | None = None
    ) -> int:
        """Take in a copy from another cache; how many tokens can be resumed from now. Blocks from
        `decoded_from` on were completed by a decode engine."""
        blocks, snapshots = self._sorted((key, segments[key]) for key in sorted(segments))
        whole = {
            kind: sum(p.kind == kind for each in self.layout.layers for p in each.parts) for kind in _KINDS
        }
        return self.pool.insert(
            prompt,
            _kept(
                {at: found for at, found in blocks.items() if len(found) == whole["growing"]}, decoded_from
            ),
            _kept({at: found for at, found in snapshots.items() if len(found) == whole["state"]}),
        ).usable_tokens

    def keep_produced(self, prompt: Prompt, produced: Produced) -> None:
        """Take in the blocks that decoding completed: a decode engine need not be sent them again."""
        blocks, _ = self._sorted(produced.segments)
        self.pool.insert(prompt, _kept(blocks, produced.first_token), {})

    def produced_beyond(self, prompt: Prompt, held_tokens: int, produced: Produced) -> list[Segment]:
        """For a copy of an answer to another cache, which has `held_tokens` of the blocks: what it lacks.
        Raises EngineError when blocks before the answer are neither there nor here."""
        width, before = self.layout.chunk_tokens, []
        if held_tokens < produced.first_token:
            with self.pool.acquire(prompt) as lease:
                before = list(lease.blocks)[: produced.first_token // width]
            if self._drop_damaged(prompt, before, produced.first_token) or (
                len(before) * width < produced.first_token
            ):
                raise EngineError("blocks before the answer are gone", remedy="raise the datacenter's cache")
        lacking = [segment for kept in before[held_tokens // width :] for segment in kept.segments]
        beyond = [
            (key, segment) for key, segment in produced.segments
            if self._kind(key) == "state" or key.chunk * width >= held_tokens
        ]  # fmt: skip
        return [*lacking, *beyond]

    def stage(self, payload: object, size_bytes: int) -> Transfer | None:
        """Count bytes in transit against the pool's budget until they are handed over; None where there
        is no room for them beside what is pinned: they go uncounted then, or not at all."""
        try:
            return self.pool.stage(payload, size_bytes)
        except CacheError:
            return None

    def _sorted(
        self, segments: Iterable[Segment]
    ) -> tuple[dict[int, list[Segment]], dict[int, list[Segment]]]:
        """Segments of blocks by their first token, and of snapshots by the tokens they stand for."""
        width = self.layout.chunk_tokens
        blocks: dict[int, list[Segment]] = {}
        snapshots: dict[int, list[Segment]] = {}
        for key, segment in segments:
            if self._kind(key) == "growing":
                blocks.setdefault(key.chunk * width, []).append((key, segment))
            else:
                snapshots.setdefault((key.chunk + 1) * width, []).append((key, segment))
        return blocks, snapshots

    def room_for(self, prompt: Prompt, key: SegmentKey, nbytes: int) -> bytearray:
        """Memory for a segment of a copy. Raises SegmentRefused for what belongs to no block of `prompt`."""
        layers = self.layout.layers
        if not (
            key.layer < len(layers)
            and key.part < len(layers[key.layer].parts)
            and key.chunk < len(prompt.blocks)
            and nbytes == self.layout.segment_bytes(key, (key.chunk + 1) * self.layout.chunk_tokens)
        ):
            raise SegmentRefused(f"{key} of {nbytes} bytes belongs to no block of this prefix")
        return bytearray(nbytes)

    def _kind(self, key: SegmentKey) -> str:
        return self.layout.layers[key.layer].parts[key.part].kind

    def _drop_damaged(self, prompt: Prompt, held: list[Kept], tokens: int) -> bool:
        """Forget the first payload that is not what was taken in, and what builds on it."""
        for number, kept in enumerate(held):
            if not kept.intact:
                is_snapshot = number * self.layout.chunk_tokens == tokens
                first = (
                    tokens - self.layout.chunk_tokens if is_snapshot else number * self.layout.chunk_tokens
                )
                self.pool.discard(prompt, first, snapshot=is_snapshot)
                return True
        return False


class Computed:
    """Stands between a prefill and its receiver: passes segments on, and keeps what a pool could use.

    States at a boundary before the prompt's end were asked for by the cache: they are not passed on.
    """

    def __init__(self, layout: CacheLayout, prompt_tokens: int, cached_tokens: int, emit: Emit) -> None:
        self.blocks: dict[int, list[Segment]] = {}
        self.snapshots: dict[int, list[Segment]] = {}
        self.tail: list[Segment] = []
        """What is sent and belongs to no block and no snapshot."""
        self._layout, self._prompt_tokens, self._cached_tokens = layout, prompt_tokens, cached_tokens
        self._last = (prompt_tokens - 1) // layout.chunk_tokens
        self._emit = emit

    def emit(self, key: SegmentKey, segment: memoryview) -> None:
        first = key.chunk * self._layout.chunk_tokens
        end = first + self._layout.chunk_tokens
        if self._layout.layers[key.layer].parts[key.part].kind == "growing":
            if end > self._prompt_tokens:
                self.tail.append((key, segment))
            elif self._cached_tokens <= first:
                self.blocks.setdefault(first, []).append((key, segment))
        elif key.chunk != self._last:
            self.snapshots.setdefault(end, []).append((key, segment))
            return
        else:
            self.tail.append((key, segment))
        self._emit(key, segment)


def _kept(found: Mapping[int, Sequence[Segment]], decoded_from: int | None = None) -> dict[int, Kept]:
    return {
        tokens: Kept(segments, decoded=decoded_from is not None and tokens >= decoded_from)
        for tokens, segments in found.items()
    }


def _copy(kept: Kept, cache: IncomingCache) -> None:
    for key, segment in kept.segments:
        cache.destination(key, segment.nbytes)[:] = segment
        cache.arrived(key)


def _block_of(cache: IncomingCache, first: int) -> list[Segment]:
    """A copy of one chunk's growing segments."""
    width, found = cache.layout.chunk_tokens, []
    for layer, layout in enumerate(cache.layout.layers):
        for number, part in enumerate(layout.parts):
            if part.kind == "growing":
                start = first * part.unit_bytes
                copied = bytes(memoryview(cache.part(layer, number))[start : start + width * part.unit_bytes])
                found.append((SegmentKey(layer, number, first // width), memoryview(copied)))
    return found
