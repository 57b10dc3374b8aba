"""What goes first, by policy."""

from __future__ import annotations

import pytest
from kvcache_prompts import GEOMETRY, assert_serves, named, prefilled, put, states

from prfaas_lab.kvcache.eviction import EVICTION_POLICIES
from prfaas_lab.kvcache.pool import Pool

A, B, C = ([n] * 9 for n in (1, 2, 3))
ROOM = 2 * (4 * 10 + 30)  # two prompts of four blocks and a snapshot


@pytest.mark.parametrize("policy", EVICTION_POLICIES)
def test_of_equals_the_least_recently_used_goes(policy: str) -> None:
    pool = Pool(GEOMETRY, ROOM, eviction=policy)
    put(pool, A, 8)
    put(pool, B, 8)
    pool.acquire(named(A)).release()
    put(pool, C, 8)
    assert [pool.match(named(p)).tokens for p in (A, B, C)] == [8, 0, 8]


@pytest.mark.parametrize("policy", EVICTION_POLICIES)
def test_a_prefix_is_eaten_from_its_end(policy: str) -> None:
    pool = Pool(GEOMETRY, 100, eviction=policy)
    put(pool, A, 2, 8)
    known = [pool.match(named(A)).known_tokens]
    for size in range(10, 101, 10):
        pool.stage(None, size).release()
        pool.check()
        known.append(pool.match(named(A)).known_tokens)
    assert known == sorted(known, reverse=True)
    assert known[0] == 8
    assert known[-1] == 0


def test_cost_drops_blocks_without_a_snapshot_before_any_snapshot() -> None:
    pool = Pool(GEOMETRY, ROOM, eviction="cost")
    put(pool, A, 8)
    put(pool, B)  # the newest, and of no use
    pool.stage(None, 50).release()
    assert pool.match(named(A)).tokens == 8
    assert pool.match(named(B)).known_tokens < 8


def test_lru_does_not_know_that_they_are_worthless() -> None:
    pool = Pool(GEOMETRY, ROOM, eviction="lru")
    put(pool, A, 8)
    put(pool, B)
    pool.stage(None, 70).release()
    assert pool.match(named(A)).tokens == 0
    assert pool.match(named(B)).known_tokens == 8


def test_cost_keeps_the_snapshot_that_saves_more_for_its_bytes() -> None:
    short, long = [1] * 3, [2] * 9
    pool = Pool(GEOMETRY, 10 + 30 + 40 + 30, eviction="cost")
    put(pool, long, 8)
    put(pool, short, 2)
    pool.stage(None, 10).release()
    assert pool.match(named(long)).tokens == 8, "older, but 8 tokens for 70 bytes beat 2 for 40"
    assert pool.match(named(short)).tokens == 0


def test_cost_forgets_what_was_once_worth_much_and_is_not_used_again() -> None:
    pool = Pool(GEOMETRY, ROOM, eviction="cost")
    put(pool, A, 8)
    for _ in range(3):
        pool.acquire(named(A)).release()
    for other in range(10, 40):
        tokens = [other] * 9
        pool.insert(named(tokens), prefilled(tokens), states(tokens, 8))
    assert pool.match(named(A)).tokens == 0


@pytest.mark.parametrize("policy", EVICTION_POLICIES)
def test_a_snapshot_may_go_alone_and_its_blocks_still_serve_those_beyond(policy: str) -> None:
    pool = Pool(GEOMETRY, 40 + 2 * 30, eviction=policy)
    put(pool, A, 2, 8)
    pool.acquire(named(A)).release()
    pool.stage(None, 5).release()
    assert pool.stats().snapshots == 1
    with pool.acquire(named(A)) as lease:
        assert lease.tokens == 8
        assert_serves(lease, A)
