"""Judging a measured link against its spec."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.fabric.measure import LinkMeasurement, configured_rtt_s, judge, mean_loss
from prfaas_lab.fabric.probes import windowed_bps
from prfaas_lab.fabric.shape import Shape
from prfaas_lab.spec.scenario import Tolerance
from prfaas_lab.spec.topology import GilbertElliott

GOOD = LinkMeasurement(
    link="wan",
    source="east",
    destination="west",
    configured_bps=100e6,
    expected_bps=95.6e6,
    goodput_bps=95e6,
    configured_rtt_s=0.020,
    rtt_slack_s=0.0,
    rtt_s=0.0205,
    attempts=1,
)


def measured(**changes: float | None) -> LinkMeasurement:
    return dataclasses.replace(GOOD, **changes)


def test_a_link_as_its_spec_says_gives_no_reason() -> None:
    assert judge(GOOD, Tolerance()) == []


@pytest.mark.parametrize("goodput_bps", [90e6, 101e6, 0.0])
def test_a_rate_off_either_way_is_a_reason(goodput_bps: float) -> None:
    (reason,) = judge(measured(goodput_bps=goodput_bps), Tolerance())
    assert "link wan from east" in reason
    assert "expected 95.6Mbit of 100Mbit" in reason


@pytest.mark.parametrize("rtt_s", [0.0179, 0.0221])
def test_a_round_trip_off_either_way_is_a_reason(rtt_s: float) -> None:
    (reason,) = judge(measured(rtt_s=rtt_s), Tolerance())
    assert "RTT" in reason


def test_jitter_widens_the_allowed_round_trip() -> None:
    assert judge(measured(rtt_s=0.0235, rtt_slack_s=0.002), Tolerance()) == []


def test_an_unshaped_link_is_only_judged_by_its_round_trip() -> None:
    assert judge(measured(configured_bps=None, expected_bps=None, goodput_bps=5e9), Tolerance()) == []


def test_a_small_packet_takes_its_time_on_a_slow_link() -> None:
    there, back = Shape(rate_bps=1e6, delay_s=0.01), Shape(delay_s=0.02)
    assert configured_rtt_s(there, back) == pytest.approx(0.03 + 82 * 8 / 1e6)


def test_mean_loss_of_a_bursty_link_weighs_its_states() -> None:
    assert mean_loss(0.01) == 0.01
    assert mean_loss(GilbertElliott(p=0.1, r=0.3)) == pytest.approx(0.25)
    assert mean_loss(GilbertElliott(p=0.0, r=0.0, loss_good=0.02)) == 0.02


@given(st.floats(1e3, 1e9), st.integers(2, 20))
def test_a_steady_stream_has_its_rate_in_every_window(rate_bps: float, windows: int) -> None:
    records = [(i / 100, round(i / 100 * rate_bps / 8)) for i in range(400)]
    assert windowed_bps(records, 0.5, 0.1, windows) == pytest.approx(rate_bps, abs=1000)


def test_one_stall_does_not_move_the_median() -> None:
    def received(at_s: float) -> int:
        return round(min(at_s, 1.0) * 1e6 if at_s < 1.2 else at_s * 1e6)

    records = [(i / 100, received(i / 100)) for i in range(300)]
    assert windowed_bps(records, 0.5, 0.1, 11) == pytest.approx(8e6, rel=0.01)
