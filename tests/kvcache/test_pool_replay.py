"""Replays against oracles that share no code with the pool: they know prompts only as lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from prfaas_lab.kvcache.blocks import Geometry, Prompt, hash_prompt
from prfaas_lab.kvcache.pool import Pool
from prfaas_lab.kvcache.tiers import MemoryTier
from prfaas_lab.workload.traces import TraceScale, read_mooncake, trace_requests

MOONCAKE = Path("/work/shared/data/mooncake_conversation_trace.jsonl")
WIDTH = 4
GEOMETRY = Geometry(block_tokens=WIDTH, block_bytes=8, snapshot_bytes=172)  # the 1T model's, per MiB
Ids = tuple[int, ...]


def mooncake(count: int) -> list[tuple[int, Ids, Prompt]]:
    """(tokens, ids of complete blocks, prompt) of the first requests, 512 tokens scaled to 4."""
    if not MOONCAKE.exists():
        pytest.skip(f"the Mooncake trace is not at {MOONCAKE}")
    rows = list(islice(read_mooncake(MOONCAKE), count))
    requests = trace_requests(rows, seed=1, vocabulary=2**16, scale=TraceScale(block_tokens=WIDTH))
    return [
        (len(r.prompt), row.hash_ids[: len(r.prompt) // WIDTH], named(r.prompt))
        for row, r in zip(rows, requests, strict=True)
    ]


def sessions(count: int, seed: int = 5) -> list[tuple[int, Ids, Prompt]]:
    """A small trace of our own: sessions that share a beginning, grow, and sometimes start anew."""
    draw, found, open_sessions = np.random.default_rng(seed), [], [[0, 1]]
    for fresh in range(1000, 1000 + 100 * count, 100):
        mother = open_sessions[draw.integers(len(open_sessions))]
        ids = [*mother[: draw.integers(1, len(mother) + 1)], *range(fresh, fresh + draw.integers(1, 6))]
        open_sessions = [*open_sessions[-5:], ids]
        tokens = [t for i in ids for t in (i, 0, 0, i)]
        tail = int(draw.integers(WIDTH))
        found.append((len(tokens) + tail, tuple(ids), named([*tokens, *[9] * tail])))
    return found


def named(tokens: Sequence[int]) -> Prompt:
    return hash_prompt(tokens, block_tokens=WIDTH, namespace=b"replay")


def replay(pool: Pool, prompts: Iterable[Prompt]) -> list[int]:
    """Serve every prompt in turn; the tokens each found."""
    hits = []
    for prompt in prompts:
        with pool.acquire(prompt) as lease:
            hits.append(lease.tokens)
            wanted = pool.wanted_snapshots(prompt)
            starts = range(lease.tokens, len(prompt.blocks) * WIDTH, WIDTH)
            pool.insert(prompt, dict.fromkeys(starts), dict.fromkeys(wanted))
    return hits


def boundless_hits(trace: Iterable[tuple[int, Ids, Prompt]]) -> list[int]:
    """With room for everything and a snapshot at each prompt's end: compare with all earlier prompts."""
    ends: list[Ids] = []
    hits = []
    for tokens, ids, _ in trace:
        last = (tokens - 1) // WIDTH
        hits.append(max((len(e) for e in ends if len(e) <= last and e == ids[: len(e)]), default=0) * WIDTH)
        ends.append(ids[:last])
    return hits


class ListLru:
    """Bounded LRU over a plain dict of (is snapshot, prefix) -> last use, searched from end to end."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used: dict[tuple[bool, Ids], int] = {}
        self.now = 0

    def held_bytes(self) -> int:
        return sum(GEOMETRY.snapshot_bytes if state else GEOMETRY.block_bytes for state, _ in self.used)

    def serve(self, tokens: int, ids: Ids) -> int:
        self.now += 1
        last = (tokens - 1) // WIDTH
        hit = max((d for d in range(1, last + 1) if (True, ids[:d]) in self.used), default=0)
        self.used.update({(False, ids[:d]): self.now for d in range(1, hit + 1)})
        if hit:
            self.used[True, ids[:hit]] = self.now
        if last * GEOMETRY.block_bytes + GEOMETRY.snapshot_bytes > self.budget_bytes:
            return hit * WIDTH  # would not fit even alone
        self.now += 1
        fresh = [(False, ids[:d]) for d in range(1, last + 1)] + [(True, ids[:last])] * (last > hit)
        protected = {*fresh, (False, ids)} | ({(True, ids[:hit])} if hit else set())
        for item in fresh:
            if item not in self.used:
                self.make_room(GEOMETRY.snapshot_bytes if item[0] else GEOMETRY.block_bytes, protected)
            self.used[item] = self.now
        tail = (False, ids)  # a last block that ends with the prompt has no snapshot: free room only
        if tail in self.used or self.held_bytes() + GEOMETRY.block_bytes <= self.budget_bytes:
            self.used[tail] = self.now
        return hit * WIDTH

    def make_room(self, size_bytes: int, protected: set[tuple[bool, Ids]]) -> None:
        while self.held_bytes() + size_bytes > self.budget_bytes:
            parents = {ids[:-1] for state, ids in self.used if not state}
            states = {ids for state, ids in self.used if state}
            free = [
                item
                for item in self.used
                if item not in protected and (item[0] or (item[1] not in parents and item[1] not in states))
            ]
            del self.used[min(free, key=lambda item: self.used[item])]


def test_the_hit_rate_on_mooncake_equals_brute_force() -> None:
    trace = mooncake(2000)
    pool = Pool(GEOMETRY, 10**9, snapshots="end")
    hits = replay(pool, [prompt for _, _, prompt in trace])
    assert hits == boundless_hits(trace)
    assert sum(hits) > 0.1 * sum(tokens for tokens, _, _ in trace), "the trace does share prefixes"
    pool.check()


def test_the_hit_rate_on_our_own_trace_equals_brute_force() -> None:
    trace = sessions(300)
    pool = Pool(GEOMETRY, 10**9, snapshots="end")
    hits = replay(pool, [prompt for _, _, prompt in trace])
    assert hits == boundless_hits(trace)
    assert sum(hits) > 0


@pytest.mark.parametrize("budget_bytes", [1000, 2000])
def test_bounded_lru_equals_a_search_through_a_list(budget_bytes: int) -> None:
    trace = sessions(150)
    pool = Pool(GEOMETRY, budget_bytes, eviction="lru", snapshots="end")
    oracle = ListLru(budget_bytes)
    hits = replay(pool, [prompt for _, _, prompt in trace])
    assert hits == [oracle.serve(tokens, ids) for tokens, ids, _ in trace]
    assert 0 < sum(hits) < sum(boundless_hits(trace)), "the bound binds"


def test_memory_stays_bounded_by_the_budget() -> None:
    """Also the index: entries are as many as their bytes allow, not as the trace is long."""
    trace, budget_bytes = mooncake(1000), 20000
    pool = Pool(GEOMETRY, budget_bytes, spill=MemoryTier(budget_bytes))
    for start in range(0, 1000, 100):
        replay(pool, [prompt for _, _, prompt in trace[start : start + 100]])
        stats = pool.stats()
        assert stats.memory_bytes <= budget_bytes
        assert stats.disk_bytes <= budget_bytes
        assert stats.blocks * 8 + stats.snapshots * 172 == stats.memory_bytes + stats.disk_bytes
    pool.check()


def test_a_larger_second_tier_never_lowers_what_is_found() -> None:
    trace = sessions(200)
    found = []
    for spill_bytes in (0, 1000, 4000, 10**6):
        pool = Pool(GEOMETRY, 1000, spill=MemoryTier(spill_bytes), snapshots="end")
        found.append(sum(replay(pool, [prompt for _, _, prompt in trace])))
    assert found == sorted(found)
    assert found[-1] == sum(boundless_hits(trace))


def test_the_same_trace_gives_the_same_decisions() -> None:
    runs = [replay(Pool(GEOMETRY, 2000), [p for _, _, p in sessions(200)]) for _ in range(2)]
    assert runs[0] == runs[1]
