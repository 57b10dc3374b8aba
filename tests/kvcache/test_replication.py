"""Hot prefixes are those asked for, and a copy is advised exactly where it pays."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvcache_prompts import GEOMETRY, named, put

from prfaas_lab.kvcache.directory import Directory, Holder
from prfaas_lab.kvcache.pool import Pool
from prfaas_lab.kvcache.replication import Demand, HotPrefix, Replication, replication_advice

SYSTEM = [1, 2, 3, 4]
SPEED = {"east": 0.01, "west": 0.01}


def directory_with(*tokens: list[int]) -> Directory:
    """East holds each prompt up to its last complete block."""
    pool, directory = Pool(GEOMETRY, 10**6), Directory(GEOMETRY)
    for prompt in tokens:
        put(pool, prompt, len(prompt) // 2 * 2)
    assert directory.apply(Holder("east"), pool.changes())
    assert directory.apply(Holder("west"), Pool(GEOMETRY, 100).changes())
    return directory


def hot(tokens: list[int], rate: float, **held: int) -> HotPrefix:
    return HotPrefix(
        prompt=named([*tokens, 0]),
        requests_per_s={"west": rate},
        held_tokens={"east": len(tokens), "west": 0, **held},
    )


def advise(*prefixes: HotPrefix, rate_bps: float = 1e3, **options: float) -> tuple[Replication, ...]:
    links = {("east", "west"): rate_bps, ("west", "east"): rate_bps}
    return replication_advice(
        prefixes, geometry=GEOMETRY, prefill_s_per_token=SPEED, rate_bps=links, **options
    )


def test_a_shared_beginning_is_hot_though_every_session_goes_on_by_itself() -> None:
    turns = [[*SYSTEM, n, n, n, n] for n in range(10, 20)]
    directory, demand = directory_with(SYSTEM, *turns), Demand(half_life_s=60)
    for now, tokens in enumerate(turns):
        demand.observe(named([*tokens, 0]), "west", float(now), directory)
    first, *others = demand.hottest(10.0, directory)
    assert first.prompt.blocks == named(SYSTEM).blocks
    assert first.held_tokens == {"east": 4, "west": 0}
    assert all(first.requests_per_s["west"] > other.requests_per_s["west"] for other in others)


def test_a_steady_stream_is_measured_at_its_rate() -> None:
    directory, demand = directory_with(SYSTEM), Demand(half_life_s=20)
    for tick in range(1000):
        demand.observe(named([*SYSTEM, 0]), "east", tick / 5, directory)
    (prefix,) = demand.hottest(200.0, directory)
    assert prefix.requests_per_s["east"] == pytest.approx(5.0, rel=0.05)
    (later,) = demand.hottest(220.0, directory)
    assert later.requests_per_s["east"] == pytest.approx(prefix.requests_per_s["east"] / 2)


def test_what_nobody_holds_is_not_hot() -> None:
    directory, demand = directory_with(SYSTEM), Demand()
    demand.observe(named([7] * 9), "west", 0.0, directory)
    assert demand.hottest(0.0, directory) == ()
    demand.observe(named([*SYSTEM, 0]), "west", 0.0, directory)
    directory.forget(Holder("east"))
    assert demand.hottest(0.0, directory) == (), "nor what was dropped meanwhile"


def test_the_statistics_are_bounded_and_keep_the_hottest() -> None:
    turns = [[n, n] for n in range(10, 90)]
    directory, demand = directory_with(SYSTEM, *turns), Demand(limit=16)
    for now, turn in enumerate(turns):
        demand.observe(named([*SYSTEM, 0]), "west", float(now), directory)
        demand.observe(named([*turn, 0]), "west", float(now), directory)
    found = demand.hottest(80.0, directory, count=100)
    assert len(found) <= 16
    assert found[0].prompt.blocks == named(SYSTEM).blocks


def test_a_copy_is_advised_where_it_saves_more_than_it_costs() -> None:
    (copy,) = advise(hot(SYSTEM, rate=1.0), horizon_s=60, margin=2)
    assert (copy.source, copy.destination, copy.bytes) == ("east", "west", 2 * 10 + 30)
    assert copy.saved_s == pytest.approx(1.0 * 60 * 4 * 0.01)
    assert copy.cost_s == pytest.approx(50 * 8 / 1e3)
    assert advise(hot(SYSTEM, rate=1.0), rate_bps=300) == (), "the link is too slow"
    assert advise(hot(SYSTEM, rate=0.1)) == (), "too few ask for it"
    assert advise(hot(SYSTEM, rate=1.0), rate_bps=0) == (), "the link is down"


def test_only_what_is_missing_crosses() -> None:
    (copy,) = advise(hot([*SYSTEM, 5, 6], rate=9.0, west=4))
    assert copy.bytes == 1 * 10 + 30
    assert advise(hot(SYSTEM, rate=9.0, west=4)) == ()
    assert advise(hot(SYSTEM, rate=9.0, east=2)) == (), "nobody holds all of it"


def test_of_nested_prefixes_one_is_copied_at_a_time() -> None:
    short, long = hot(SYSTEM, rate=10.0), hot([*SYSTEM, 5, 6], rate=1.0)
    (copy,) = advise(short, long)
    assert copy.prompt == short.prompt
    other = hot([9, 9], rate=5.0)
    assert {c.prompt for c in advise(short, long, other)} == {short.prompt, other.prompt}


@given(rate=st.floats(0, 100), faster=st.floats(1, 100), more=st.floats(1, 100))
def test_more_demand_or_a_faster_link_never_withdraws_advice(rate: float, faster: float, more: float) -> None:
    prefix = hot(SYSTEM, rate=rate)
    if advise(prefix):
        assert advise(prefix, rate_bps=1e3 * faster)
        assert advise(replace(prefix, requests_per_s={"west": rate * more}))
