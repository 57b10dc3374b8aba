"""The directory knows what it was told, notices what it was not, and misleads nobody for long."""

from __future__ import annotations

from dataclasses import replace

from kvcache_prompts import GEOMETRY, named, put

from prfaas_lab.kvcache.blocks import Geometry
from prfaas_lab.kvcache.directory import Directory, Holder
from prfaas_lab.kvcache.pool import Pool

A = [1, 2, 3, 4, 5, 6, 7, 8, 9]
EAST, WEST, WEST_TOO = Holder("east"), Holder("west", "west-p0"), Holder("west", "west-p1")


def told(*pools: tuple[Holder, Pool]) -> Directory:
    directory = Directory(GEOMETRY)
    for holder, pool in pools:
        assert directory.apply(holder, pool.changes())
    return directory


def filled(*ends: int, epoch: int = 0) -> Pool:
    pool = Pool(GEOMETRY, 1000, epoch=epoch)
    put(pool, A, *ends)
    return pool


def test_a_match_names_every_datacenter_with_its_best_engine() -> None:
    directory = told((EAST, filled(2)), (WEST, filled(4, 6)), (WEST_TOO, Pool(GEOMETRY, 100)))
    assert directory.match(named(A)) == {"east": 2, "west": 6}
    assert directory.match_holders(named(A)) == {EAST: 2, WEST: 6, WEST_TOO: 0}
    assert directory.match(named([0, *A])) == {"east": 0, "west": 0}
    assert directory.boundaries(named(A)) == (2, 4, 6)
    assert directory.held_tokens(named(A), EAST) == 8, "blocks without a snapshot need not cross again"


def test_a_model_without_state_matches_at_every_block() -> None:
    dense = Geometry(block_tokens=2, block_bytes=10, snapshot_bytes=0)
    pool, directory = Pool(dense, 1000), Directory(dense)
    put(pool, A)
    directory.apply(EAST, pool.changes())
    assert directory.match(named([*A[:5], 0, 0, 0])) == {"east": 4}
    directory.correct(EAST, named(A), 4)
    assert directory.match(named(A)) == {"east": 4}


def test_what_was_evicted_is_forgotten_with_the_next_news() -> None:
    pool = filled(8)
    directory = told((EAST, pool))
    pool.stage(None, 1000).release()
    assert directory.match(named(A)) == {"east": 8}, "stale until told"
    assert directory.apply(EAST, pool.changes())
    assert directory.match(named(A)) == {"east": 0}


def test_a_stale_hint_is_corrected_by_who_was_misled() -> None:
    directory = told((EAST, filled(2, 4, 8)))
    directory.correct(EAST, named(A), 2)
    assert directory.match(named(A)) == {"east": 2}
    directory.correct(Holder("nowhere"), named(A), 0)


def test_a_lost_delta_is_noticed_and_a_listing_repairs_it() -> None:
    pool = filled(4)
    directory = told((EAST, pool))
    put(pool, [0, *A], 8)
    pool.changes()  # lost on the way
    put(pool, [5, *A], 8)
    assert not directory.apply(EAST, pool.changes())
    assert directory.apply(EAST, pool.listing())
    assert directory.match(named([0, *A])) == directory.match(named([5, *A])) == {"east": 8}


def test_news_that_comes_twice_or_late_changes_nothing() -> None:
    pool = filled(8)
    directory, first = Directory(GEOMETRY), pool.changes()
    old = pool.listing()
    pool.stage(None, 1000).release()
    second = pool.changes()
    assert not directory.apply(EAST, second), "nothing is known before it"
    for delta in (first, first, old, second, old, first):
        assert directory.apply(EAST, delta)
    assert directory.match(named(A)) == {"east": 0}


def test_a_pool_that_starts_anew_is_believed_anew() -> None:
    directory = told((EAST, filled(8)))
    reborn = Pool(GEOMETRY, 1000, epoch=1)
    assert directory.apply(EAST, reborn.changes())
    assert directory.match(named(A)) == {"east": 0}
    late = filled(8).changes()
    assert directory.apply(EAST, replace(late, version=7)), "from the old life: ignored"
    assert directory.match(named(A)) == {"east": 0}


def test_a_dead_holder_holds_nothing() -> None:
    directory = told((EAST, filled(8)))
    directory.forget(EAST)
    assert directory.match(named(A)) == {}
    assert directory.holders == ()


def test_a_pool_nobody_listened_to_catches_up_with_a_listing() -> None:
    pool = Pool(GEOMETRY, 10**6, journal_limit=10)
    put(pool, A, 8)
    put(pool, [0] * 21, 20)
    delta = pool.changes()
    assert delta.full
    assert len(delta.blocks_added) == 14
    directory = Directory(GEOMETRY)
    assert directory.apply(EAST, delta)
    assert directory.match(named(A)) == {"east": 8}
    put(pool, [7, 7, 7], 2)
    following = pool.changes()
    assert not following.full
    assert directory.apply(EAST, following)
    assert directory.match(named([7, 7, 7])) == {"east": 2}
