"""What a pool promises, one claim at a time."""

from __future__ import annotations

import pytest
from kvcache_prompts import GEOMETRY, WIDTH, assert_serves, named, prefilled, put, states

from prfaas_lab.kvcache.blocks import CacheError, Geometry
from prfaas_lab.kvcache.pool import Pool

A = [1, 2, 3, 4, 5, 6, 7, 8, 9]  # four complete blocks and a tail
DENSE = Geometry(block_tokens=WIDTH, block_bytes=10, snapshot_bytes=0)


def test_a_hit_is_the_longest_boundary_with_blocks_and_snapshot() -> None:
    pool = Pool(GEOMETRY, 1000)
    put(pool, A, 2, 6)
    assert pool.match(named(A)).tokens == 6
    assert pool.match(named([*A[:6], 0, 0, 0])).tokens == 6
    assert pool.match(named([*A[:5], 0, 0, 0, 0])).tokens == 2, "blocks reach 4, the state only 2"
    assert pool.match(named([*A[:5], 0, 0])).known_tokens == 4
    assert pool.match(named([0, *A])).tokens == 0


def test_a_model_without_state_resumes_at_every_block() -> None:
    pool = Pool(DENSE, 1000)
    put(pool, A)
    assert pool.match(named([*A[:5], 0, 0])).tokens == 4
    assert pool.wanted_snapshots(named(A)) == ()
    with pool.acquire(named(A)) as lease:
        assert_serves(lease, A, stateful=False)
        assert (lease.tokens, lease.snapshot) == (8, None)


def test_the_whole_prompt_is_never_served_from_the_cache() -> None:
    pool = Pool(GEOMETRY, 1000)
    put(pool, A[:8], 6, 8)
    assert pool.match(named(A[:8])).tokens == 6
    assert pool.match(named(A)).tokens == 8


def test_a_lease_carries_the_payloads_in_order() -> None:
    pool = Pool(GEOMETRY, 1000)
    put(pool, A, 6)
    with pool.acquire(named(A)) as lease:
        assert lease.tokens == 6
        assert_serves(lease, A)


def test_what_is_leased_survives_any_pressure() -> None:
    pool = Pool(GEOMETRY, 100)
    put(pool, A, 6)
    with pool.acquire(named(A)) as lease:
        for other in range(10, 60, 10):
            put(pool, [other, *A], 8)
            pool.check()
        assert_serves(lease, A)
        assert pool.match(named(A)).tokens == 6
    put(pool, [99, *A], 8)
    assert pool.match(named(A)).tokens == 0, "and goes once released"


def test_what_is_retained_stays_though_it_cannot_be_resumed_from() -> None:
    pool = Pool(GEOMETRY, 100)
    put(pool, A, 2)
    with pool.retain(named(A)) as lease:
        assert (lease.tokens, lease.snapshot, pool.match(named(A)).tokens) == (8, None, 2)
        put(pool, [99, *A], 8)
        assert pool.match(named(A)).known_tokens == 8
        pool.check()
    put(pool, [98, *A], 8)
    assert pool.match(named(A)).known_tokens < 8


@pytest.mark.parametrize("snapshot", [False, True])
def test_damage_is_forgotten_once_nobody_reads_it(snapshot: bool) -> None:
    pool = Pool(GEOMETRY, 1000)
    put(pool, A, 2, 4, 6)
    with pool.acquire(named(A)):
        pool.discard(named(A), 4, snapshot=snapshot)
        assert (pool.match(named(A)).tokens, pool.stats().damaged) == (6, 0)
        pool.check()
    pool.discard(named(A), 4, snapshot=snapshot)
    assert (pool.match(named(A)).tokens, pool.stats().damaged) == (4, 1)
    pool.check()


def test_what_is_held_is_not_stored_twice() -> None:
    pool = Pool(GEOMETRY, 1000)
    put(pool, A, 8)
    again = put(pool, [*A[:4], 0, 0, 0], 4, 6)
    assert (again.blocks, again.snapshots, again.usable_tokens) == (1, 2, 6)
    assert pool.stats().memory_bytes == 5 * 10 + 3 * 30


def test_only_what_continues_the_held_prefix_is_taken() -> None:
    pool = Pool(GEOMETRY, 1000)
    blocks = prefilled(A)
    del blocks[2]
    inserted = pool.insert(named(A), blocks, states(A, 2, 8))
    assert (inserted.blocks, inserted.snapshots, inserted.usable_tokens) == (1, 1, 2)


def test_no_room_is_made_for_blocks_that_no_snapshot_uses() -> None:
    pool = Pool(GEOMETRY, 100)
    put(pool, A, 8)  # 40 bytes of blocks, 30 of state: 30 free
    before = pool.match(named(A)).tokens
    assert put(pool, [0] * 12).blocks == 3, "free room is used"
    assert pool.match(named(A)).tokens == before


def test_a_prompt_too_large_for_the_pool_is_kept_as_far_as_it_is_usable() -> None:
    pool = Pool(GEOMETRY, 75)
    assert put(pool, A, 4, 8).usable_tokens == 4, "two snapshots and four blocks would be 100 bytes"
    tiny = Pool(GEOMETRY, 39)
    assert put(tiny, A, 2).usable_tokens == 0
    tiny.check()


def test_a_transfer_takes_budget_and_gives_it_back() -> None:
    pool = Pool(GEOMETRY, 100)
    put(pool, A, 8)
    with pool.stage(b"tail", 60) as tail:
        assert (tail.payload, pool.stats().transfers) == (b"tail", 1)
        pool.check()
        with pytest.raises(CacheError, match="no room for a transfer of 41B: 60B of the cache are pinned"):
            pool.stage(b"more", 41)
    assert (pool.stats().transfers, pool.stats().pinned_bytes) == (0, 0)
    assert pool.match(named([*A, 1])).tokens == 0, "it pushed the prefix out"


def test_a_transfer_grows_as_far_as_there_is_room() -> None:
    pool = Pool(GEOMETRY, 100)
    put(pool, A, 8)
    with pool.stage(b"copy", 0) as copy:
        assert pool.match(named([*A, 1])).tokens == 8, "nothing has come yet"
        copy.grow(60)
        assert (copy.size_bytes, pool.stats().pinned_bytes) == (60, 60)
        assert pool.match(named([*A, 1])).tokens == 0, "it pushed the prefix out"
        with pytest.raises(CacheError, match="no room for a transfer of 41B: 60B of the cache are pinned"):
            copy.grow(41)
        copy.grow(40)
        pool.check()
    stats = pool.stats()
    assert (stats.pinned_bytes, stats.transfers_made, stats.transfers_refused) == (0, 1, 1)
    assert stats.transfer_peak_bytes == 100


def test_releasing_twice_is_a_bug() -> None:
    pool = Pool(GEOMETRY, 100)
    lease = pool.acquire(named(A))
    lease.release()
    with pytest.raises(AssertionError):
        lease.release()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("end", (8,)), ("branch", (4, 8)), ("every", (4, 8)), ("every+end", (4, 8))],
)
def test_snapshots_are_wanted_where_the_policy_says(policy: str, expected: tuple[int, ...]) -> None:
    pool = Pool(GEOMETRY, 1000, snapshots=policy, snapshot_every_tokens=4)
    put(pool, [*A[:4], 0, 0, 0, 0, 0], 8)  # shares two blocks, without a snapshot there
    assert pool.wanted_snapshots(named(A)) == expected


def test_no_snapshot_is_wanted_where_the_hit_already_is() -> None:
    pool = Pool(GEOMETRY, 1000, snapshots="every", snapshot_every_tokens=2)
    put(pool, A, 4)
    assert pool.wanted_snapshots(named(A)) == (6, 8)
    assert pool.wanted_snapshots(named(A[:5])) == ()


def test_a_third_prompt_resumes_where_the_second_left_the_first() -> None:
    pool = Pool(GEOMETRY, 1000, snapshots="branch")
    shared = A[:6]
    hits = []
    for turn in range(3):
        tokens = [*shared, *[100 + turn] * 7]
        with pool.acquire(named(tokens)) as lease:
            hits.append(lease.tokens)
            wanted = pool.wanted_snapshots(named(tokens))
            pool.insert(named(tokens), prefilled(tokens), states(tokens, *wanted))
    assert hits == [0, 0, 6]


def test_the_counters_tell_what_was_saved() -> None:
    pool = Pool(GEOMETRY, 1000)
    pool.acquire(named(A)).release()
    put(pool, A, 6, 8)
    pool.acquire(named(A)).release()
    stats = pool.stats()
    assert (stats.lookups, stats.hits, stats.prompt_tokens, stats.hit_tokens) == (2, 1, 18, 8)
    assert stats.hit_rate == 8 / 18
    assert stats.snapshot_efficiency == 1 / 2


@pytest.mark.parametrize("choice", [{"eviction": "fifo"}, {"snapshots": "never"}])
def test_an_unknown_policy_is_refused_with_the_known_ones(choice: dict[str, str]) -> None:
    with pytest.raises(CacheError, match="choose one of"):
        Pool(GEOMETRY, 100, **choice)


def test_a_payload_is_opaque() -> None:
    pool = Pool(GEOMETRY, 100)
    handle = object()
    pool.insert(named(A[:3]), {0: handle}, {2: None})
    with pool.acquire(named(A[:3])) as lease:
        assert lease.blocks == (handle,)
