"""An engine's share of the prefix cache: segments of KVCache kept in a pool, checked, and found again.

What is kept are the very segments that cross the wire, so that nothing is converted on the way in or
out. A block holds the growing segments of one prefill chunk, a snapshot the states at a chunk boundary.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from prfaas_lab.engine.computed import Computed
from prfaas_lab.engine.kept import Kept, Segment, to_keep
from prfaas_lab.engine.spill import SpillTier
from prfaas_lab.kvcache import CacheError, Geometry, Lease, Pool, Prompt, Tier, Transfer
from prfaas_lab.kvcache.eviction import DEFAULT_EVICTION
from prfaas_lab.kvcache.snapshots import DEFAULT_SNAPSHOTS
from prfaas_lab.model.buffers import IncomingCache, chunk_spans
from prfaas_lab.model.layout import CacheLayout, SegmentKey


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
    """One engine's pool. Lookups copy out, so nothing stays pinned while a prompt waits or computes; copies
    to and from other caches are `prefix_copies`.

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
        with self.intact(prompt) as lease:
            if not lease.tokens:
                return None
            cache = IncomingCache(self.layout, lease.tokens)
            for kept in lease.blocks:
                _copy(kept, cache)
            if lease.snapshot is not None:
                _copy(lease.snapshot, cache)
            decoded = sum(kept.decoded for kept in lease.blocks)
        return Found(cache, decoded * self.layout.chunk_tokens)

    def fill(self, prompt: Prompt, incoming: IncomingCache) -> int:
        """Copy what is held of a prompt's growing cache into its reservation; how many tokens that is."""
        with self.intact(prompt) as lease:
            for kept in lease.blocks:
                _copy(kept, incoming)
                incoming.held.update(key for key, _ in kept.segments)
            return lease.tokens

    def snapshots_for(self, prompt: Prompt) -> tuple[int, ...]:
        """The boundaries, in tokens, whose state is worth keeping when `prompt` is prefilled."""
        return self.pool.wanted_snapshots(prompt)

    def keep(self, prompt: Prompt, computed: Computed) -> None:
        """Take in what a prefill computed."""
        self.pool.insert(prompt, to_keep(computed.blocks), to_keep(computed.snapshots))

    def keep_received(self, prompt: Prompt, cache: IncomingCache) -> None:
        """Take in the complete blocks of a cache that was received; its memory stays the caller's."""
        held = self.pool.match(prompt).known_tokens
        blocks = {}
        for first, end in chunk_spans(cache.tokens, self.layout.chunk_tokens, start=held):
            if end - first == self.layout.chunk_tokens:
                blocks[first] = _block_of(cache, first)
        self.pool.insert(prompt, to_keep(blocks), {})

    def stage(self, payload: object, size_bytes: int) -> Transfer | None:
        """Count bytes in transit against the pool's budget until they are handed over; None where there
        is no room for them beside what is pinned: they go uncounted then, or not at all."""
        try:
            return self.pool.stage(payload, size_bytes)
        except CacheError:
            return None

    def intact(self, prompt: Prompt, *, usable: bool = True) -> Lease:
        """The longest prefix whose bytes are what was taken in, pinned: one to resume from, or (not `usable`)
        blocks alone. What is damaged is forgotten, with what builds on it, unless somebody reads it."""
        width = self.layout.chunk_tokens
        while True:
            lease = self.pool.acquire(prompt) if usable else self.pool.retain(prompt)
            held: list[Kept] = [*lease.blocks, *([] if lease.snapshot is None else [lease.snapshot])]
            damaged = next((number for number, kept in enumerate(held) if not kept.intact), None)
            if damaged is None:
                return lease
            is_snapshot = damaged == len(lease.blocks)
            lease.release()
            block = damaged - is_snapshot
            self.pool.discard(prompt, block * width, snapshot=is_snapshot)
            prompt = prompt.beginning(block)


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
