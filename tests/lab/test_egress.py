"""Claims about what the senders' connections tell of a link that they share."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from prfaas_lab.lab.egress import WINDOW, Egress, Estimate, told
from prfaas_lab.lab.simulated_paths import SimulatedPaths
from prfaas_lab.router.values import PathView
from prfaas_lab.transport.congestion import FULL, PathSample


def path(rate_bps: float, *, backlogged: bool = True, congested: bool = False) -> dict[str, Any]:
    return {"throughput_bps": rate_bps, "backlogged": backlogged, "congested": congested}


def test_what_engines_get_together_is_what_the_link_gives():
    egress = Egress()
    for _ in range(WINDOW):
        estimate = egress.observe([path(60e6), path(40e6, backlogged=False)])
    assert estimate.available_bps == estimate.throughput_bps == pytest.approx(100e6)


def test_an_engine_that_joins_in_does_not_bend_the_estimate():
    egress = Egress()
    for shares in [[100e6]] * WINDOW + [[70e6, 30e6]] + [[50e6, 50e6]] * 3:
        estimate = egress.observe([path(share) for share in shares])
        assert estimate.available_bps == pytest.approx(100e6)


def test_a_link_that_was_never_asked_for_all_it_has_is_unknown():
    assert Egress().observe([path(5e6, backlogged=False)]).available_bps is None


def test_the_estimate_outlasts_idleness_and_the_throughput_does_not():
    egress = Egress()
    egress.observe([path(100e6)])
    for _ in range(WINDOW):
        estimate = egress.observe([])
    assert (estimate.throughput_bps, estimate.available_bps) == (0, 100e6)


def test_congestion_of_one_path_is_the_links():
    assert Egress().observe([path(1e6), path(1e6, congested=True)]).congested
    assert not Egress().observe([path(1e6)]).congested


@pytest.mark.parametrize(("share", "full"), [(FULL - 0.01, False), (FULL + 0.01, True)])
def test_a_simulated_way_and_the_kernels_are_full_from_the_same_share_on(share: float, full: bool):
    sample = PathSample(
        at_s=1.0, connections=2, throughput_bps=share * 1e6, available_bps=1e6, backlog_bytes=10, rtt_s=0.2,
        min_rtt_s=0.02, loss=0.0, receiver_limited=0.0,
    )  # fmt: skip
    assert sample.congested is full

    learnt: list[Estimate] = []
    sites = {"east": SimpleNamespace(role="prfaas"), "west": SimpleNamespace(role="local")}
    passed = itertools.count(step=share * 1e6 / 8)
    network = SimpleNamespace(
        topology=SimpleNamespace(datacenters=sites),
        demand=lambda *_: (next(passed), True),
        nominal_bps=lambda *_: 1e6,
    )
    ways = SimpleNamespace(
        paths=lambda: (PathView(source="east", destination="west", rate_bps=1e6, rtt_s=0.02),),
        bottleneck=lambda *_: ("wan", "east"),
        learn=lambda source, destination, estimate: learnt.append(estimate),
    )
    paths = SimulatedPaths(network, ways)  # type: ignore[arg-type]
    for _ in range(2):  # it must have waited at the look before, too
        paths.round(1.0)
    assert [estimate.congested for estimate in learnt] == [False, full]


def test_an_engine_tells_all_that_an_event_needs():
    from prfaas_lab.lab.watch_paths import _AS_TOLD

    sample = PathSample(
        at_s=1.0, connections=2, throughput_bps=1e6, available_bps=2e6, backlog_bytes=10, rtt_s=0.03,
        min_rtt_s=0.02, loss=0.0, receiver_limited=0.0,
    )  # fmt: skip
    (state,) = told({("10.0.0.1", 7000): sample})
    assert set(_AS_TOLD) <= set(state)
    assert (state["host"], state["utilisation"]) == ("10.0.0.1", 0.5)
