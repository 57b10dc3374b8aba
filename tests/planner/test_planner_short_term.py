"""The short-term law: it moves the right way, rests within its band, and stops when the link is down."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.planner.short_term import ShortTerm, Signals, follow_plan, tick

START = ShortTerm(planned=20_000, threshold=20_000, longest=131_072, band_s=2.0)
waits = st.floats(0, 100)


def seen(
    prfaas_s: float = 0.0, home_s: float = 0.0, *, transit_s: float = 0.0, used: float = 0.2, up: bool = True
) -> Signals:
    return Signals(up=up, utilization=used, prfaas_queue_s=prfaas_s, transit_s=transit_s, home_queue_s=home_s)


@given(waits, waits, st.floats(0, 1))
def test_it_never_sends_more_to_the_side_that_waits_longer(
    prfaas_s: float, home_s: float, used: float
) -> None:
    after = tick(START, seen(prfaas_s, home_s, used=used))
    if prfaas_s >= home_s:
        assert after.threshold >= START.threshold
    else:
        assert after.threshold <= START.threshold


def test_kvcache_in_front_of_the_link_counts_as_waiting() -> None:
    assert tick(START, seen(transit_s=10.0)).threshold > START.threshold


@given(st.floats(-2.0, 2.0))
def test_within_the_band_nothing_moves(imbalance_s: float) -> None:
    after = tick(START, seen(10 + imbalance_s, 10))
    assert (after.threshold, after.direction) == (START.threshold, "resting")


def test_what_has_started_goes_on_until_half_the_band_and_then_drifts_back() -> None:
    rising = tick(START, seen(4.0, 0.0))
    assert rising.direction == "rising"
    eased = tick(rising, seen(3.0, 0.0))
    assert (eased.direction, eased.threshold) == ("rising", rising.threshold)  # it pauses while that helps
    rested = tick(eased, seen(1.0, 0.0))
    assert rested.direction == "resting"
    assert START.planned <= rested.threshold < eased.threshold


def test_it_stays_within_its_bounds_whatever_it_sees() -> None:
    high = low = START
    for n in range(500):
        high, low = tick(high, seen(10 + n, 0.0)), tick(low, seen(0.0, 10 + n))
    assert high.threshold == START.longest
    assert low.threshold == START.planned / 16


def test_a_dead_link_stops_offloading_and_the_plan_holds_when_it_is_back() -> None:
    down = tick(START, seen(up=False))
    assert down.threshold == START.longest
    assert "down" in down.reason
    back = tick(down, seen())
    assert (back.threshold, back.up) == (START.planned, True)


def test_scarcity_has_hysteresis_and_forbids_falling() -> None:
    scarce = tick(START, seen(used=0.95))
    assert scarce.scarce
    assert tick(scarce, seen(used=0.8)).scarce
    assert not tick(scarce, seen(used=0.6)).scarce
    assert not tick(START, seen(used=0.8)).scarce
    assert tick(scarce, seen(0.0, 50.0, used=0.8)).threshold >= scarce.threshold


def test_a_new_plan_takes_effect_at_once() -> None:
    assert follow_plan(tick(START, seen(50.0, 0.0)), 30_000).threshold == 30_000
