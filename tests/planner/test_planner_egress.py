"""What is believed of a way: measured when it is asked for all it has, probed when it is not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.planner.egress import DEAD_SHARE, PROBE, Reading, Way, look

RATE = 100e9
rates = st.floats(0, RATE)


def asked(gives_bps: float, configured_bps: float | None = RATE) -> Reading:
    return Reading(
        configured_bps=configured_bps, throughput_bps=gives_bps, measured_bps=gives_bps, backlogged=True
    )


def idle(throughput_bps: float = 0.0, measured_bps: float | None = 6e9) -> Reading:
    return Reading(configured_bps=RATE, throughput_bps=throughput_bps, measured_bps=measured_bps)


def test_a_way_that_was_never_asked_for_all_gives_what_it_is_configured_to():
    assert look(Way(), Reading(configured_bps=RATE)) == Way(rate_bps=RATE)
    assert look(Way(), Reading()).wait_s(10**12) == 0


def test_a_rate_that_falls_without_anyone_telling_is_seen_at_once():
    way = look(Way(rate_bps=RATE), asked(6e9))
    assert (way.rate_bps, way.up, way.utilization) == (6e9, True, 1.0)
    assert way.wait_s(6e9) == pytest.approx(8.0)


@given(rates, rates)
def test_the_configured_rate_is_never_exceeded_and_a_narrower_way_never_waits_less(a: float, b: float):
    narrow, wide = (look(Way(rate_bps=RATE), asked(rate)) for rate in sorted((a, b)))
    assert (narrow.rate_bps or 0.0) <= (wide.rate_bps or 0.0) <= RATE
    assert narrow.wait_s(1e9) >= wide.wait_s(1e9)


@given(st.floats(0, 1))
def test_an_old_measurement_is_forgotten_in_bounded_time(share: float):
    way = look(Way(rate_bps=RATE), asked(share * RATE))
    for _ in range(math.ceil(math.log(1 / DEAD_SHARE) / math.log(PROBE))):
        way = look(way, idle(measured_bps=share * RATE))
    assert (way.rate_bps, way.measured) == (RATE, False)


def test_what_gets_through_is_the_least_it_gives():
    assert look(look(Way(), asked(6e9)), idle(throughput_bps=40e9)).rate_bps == 40e9


def test_an_unshaped_way_is_as_wide_as_it_was_seen_to_be():
    way = look(Way(), asked(5e9, configured_bps=None))
    assert way.rate_bps == 5e9
    assert look(way, Reading()).rate_bps == pytest.approx(5e9 * PROBE)


def test_a_way_through_which_nothing_comes_is_dead_until_twice_that_does_or_nothing_waits():
    dead = look(Way(rate_bps=RATE), asked(DEAD_SHARE * RATE / 2))
    assert not dead.up
    assert not look(dead, asked(DEAD_SHARE * RATE * 1.5)).up
    assert look(dead, asked(DEAD_SHARE * RATE * 3)).up
    assert look(dead, idle()).up


@given(rates, st.booleans())
def test_a_way_that_is_down_by_configuration_is_dead_whatever_was_measured(gives_bps: float, by_rate: bool):
    seen = asked(gives_bps, configured_bps=0.0 if by_rate else RATE)
    assert not look(Way(), seen if by_rate else Reading(up=False)).up
