"""The short-term law: monotone, with hysteresis, without memory of what is over, dead with its link."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.planner.short_term import BASE_TOKENS, LOWEST, ShortTerm, Signals, follow_plan, tick

START = ShortTerm(planned=20_000, threshold=20_000, longest=131_072, band_s=2.0)
waits = st.floats(0, 100)
shares = st.floats(0, 1)


def seen(
    prfaas_s: float = 0.0,
    home_s: float = 0.0,
    *,
    egress_s: float = 0.0,
    used: float = 0.2,
    congested: bool = False,
    up: bool = True,
) -> Signals:
    return Signals(
        up=up,
        utilization=used,
        prfaas_queue_s=prfaas_s,
        egress_s=egress_s,
        home_queue_s=home_s,
        congested=congested,
    )


signals = st.builds(seen, waits, waits, egress_s=waits, used=shares, congested=st.booleans())


@st.composite
def states(draw: st.DrawFn) -> ShortTerm:
    """Any that the law can come to."""
    state = START
    for _ in range(draw(st.integers(0, 3))):
        state = tick(state, draw(signals))
    return state


@given(states(), waits, waits, waits, shares, st.booleans(), waits)
def test_the_longer_the_prfaas_side_waits_the_less_is_offloaded(
    state: ShortTerm,
    queue_s: float,
    home_s: float,
    egress_s: float,
    used: float,
    congested: bool,
    more: float,
) -> None:
    now = tick(state, seen(queue_s, home_s, egress_s=egress_s, used=used, congested=congested))
    longer_queue = seen(queue_s + more, home_s, egress_s=egress_s, used=used, congested=congested)
    narrower_way = seen(queue_s, home_s, egress_s=egress_s + more, used=used, congested=congested)
    shorter_home = seen(queue_s, max(0.0, home_s - more), egress_s=egress_s, used=used, congested=congested)
    for worse in (longer_queue, narrower_way, shorter_home):
        assert tick(state, worse).threshold >= now.threshold * (1 - 1e-12)


@given(states(), waits, waits, waits, shares, shares)
def test_a_fuller_or_congested_link_never_offloads_more(
    state: ShortTerm, queue_s: float, home_s: float, egress_s: float, a: float, b: float
) -> None:
    low, high = sorted((a, b))
    emptier, fuller = (tick(state, seen(queue_s, home_s, egress_s=egress_s, used=u)) for u in (low, high))
    congested = tick(state, seen(queue_s, home_s, egress_s=egress_s, used=high, congested=True))
    assert emptier.threshold <= fuller.threshold <= congested.threshold


@given(st.floats(0, BASE_TOKENS), waits, waits)
def test_a_plan_near_nothing_rises_too_and_comes_back(planned: float, queue_s: float, home_s: float) -> None:
    small = ShortTerm(planned=planned, threshold=planned, longest=131_072, band_s=2.0)
    risen = tick(small, seen(100.0))
    assert risen.threshold > 5 * BASE_TOKENS
    assert tick(small, seen(queue_s + 1.0, home_s)).threshold >= tick(small, seen(queue_s, home_s)).threshold
    assert tick(risen, seen()).threshold == max(1.0, planned)


@given(st.floats(BASE_TOKENS, 100_000), waits, waits)
def test_the_base_for_small_plans_leaves_the_others_alone(
    planned: float, queue_s: float, home_s: float
) -> None:
    usual = ShortTerm(planned=planned, threshold=planned, longest=1e9, band_s=2.0)
    double = ShortTerm(planned=2 * planned, threshold=2 * planned, longest=1e9, band_s=2.0)
    now, twice = (tick(state, seen(queue_s, home_s)) for state in (usual, double))
    assert twice.threshold == 2 * now.threshold


def test_a_new_plan_moves_a_threshold_that_rose_from_nothing_by_the_difference() -> None:
    small = ShortTerm(planned=1.0, threshold=1.0, longest=131_072, band_s=2.0)
    risen = tick(small, seen(100.0))
    assert follow_plan(risen, 1000.0).threshold == risen.threshold + 999.0


def test_kvcache_in_front_of_the_link_counts_while_bandwidth_is_scarce() -> None:
    assert tick(START, seen(egress_s=10.0, used=0.95)).threshold > START.threshold
    assert tick(START, seen(egress_s=10.0, congested=True)).threshold > START.threshold
    assert tick(START, seen(egress_s=10.0, used=0.5)).threshold == START.threshold


@given(st.floats(-2.9, 2.9))
def test_within_the_zone_nothing_moves(imbalance_s: float) -> None:
    after = tick(START, seen(10 + imbalance_s, 10))
    assert (after.threshold, after.direction) == (START.threshold, "resting")


def test_what_has_left_the_zone_must_come_back_further_than_it_left() -> None:
    left = tick(START, seen(2.5, 0.0))
    assert left.direction == "rising"
    assert tick(START, seen(1.5, 0.0)).direction == "resting"
    assert tick(left, seen(1.5, 0.0)).direction == "rising"
    assert tick(left, seen(1.0, 0.0)).direction == "resting"
    assert tick(left, seen(0.0, 1.5)).direction == "resting"  # the other side has its whole zone


@given(st.lists(signals, max_size=20))
def test_when_the_cause_is_gone_so_is_its_effect(history: list[Signals]) -> None:
    state = START
    for each in history:
        state = tick(state, each)
        assert START.planned * LOWEST <= state.threshold <= START.longest
    assert tick(state, seen()).threshold == START.planned


@given(states(), waits, waits, waits, shares)
def test_nothing_is_offloaded_over_a_dead_link_and_one_tick_after_it_is_back_the_law_holds(
    state: ShortTerm, queue_s: float, home_s: float, egress_s: float, used: float
) -> None:
    down = tick(state, seen(queue_s, home_s, egress_s=egress_s, used=used, up=False))
    assert down.threshold == START.longest
    assert "down" in down.reason
    assert follow_plan(down, 10_000).threshold == START.longest
    back = tick(down, seen())
    assert (back.threshold, back.up) == (START.planned, True)
    assert back.reason.startswith("the link is up again")


def test_scarcity_has_hysteresis() -> None:
    scarce = tick(START, seen(used=0.95))
    assert scarce.scarce
    assert tick(scarce, seen(used=0.8)).scarce
    assert not tick(scarce, seen(used=0.6)).scarce
    assert not tick(START, seen(used=0.8)).scarce
    assert tick(scarce, seen(used=0.6, congested=True)).scarce


def test_a_new_plan_takes_effect_at_once_by_as_much_as_it_differs() -> None:
    assert follow_plan(START, 30_000).threshold == 30_000
    raised = tick(START, seen(10.0, 0.0))
    assert follow_plan(raised, 30_000).threshold == pytest.approx(1.5 * raised.threshold)
