"""Ten seconds that show the chosen shaper at work: a round trip, a rate, and a change of rate."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import time
from dataclasses import dataclass

from prfaas_lab.fabric.flood import Flood
from prfaas_lab.fabric.measure import LinkMeasurement, judge, measure
from prfaas_lab.fabric.network import Fabric, up
from prfaas_lab.fabric.ownership import Ownership
from prfaas_lab.fabric.probes import record_stream, windowed_bps
from prfaas_lab.fabric.shape import ACHIEVABLE, Shape
from prfaas_lab.spec.scenario import Tolerance
from prfaas_lab.spec.topology import Topology
from prfaas_lab.units import format_rate

BEFORE_BPS, AFTER_BPS, DELAY_S = 20e6, 10e6, 0.010
SETTLE_S, WATCH_S = 0.1, 0.5
ATTEMPTS = 3
_TOPOLOGY = {
    "name": "self-test",
    "datacenters": {
        "east": {"role": "prfaas", "engines": {"prefill": 1}},
        "west": {"role": "local", "engines": {"decode": 1}},
    },
    "links": {"wan": {"between": ["east", "west"], "rate": "20Mbit", "delay": "10ms"}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RateStep:
    """Wire rates before a change and from 100 ms after it, under more traffic than fits."""

    before_bps: float
    after_bps: float
    measured_before_bps: float
    measured_after_bps: float
    applied_in_s: float
    """How long the change itself took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """What the shaper did, and what of it is off; no problems: it can be believed."""

    shaper: str
    links: tuple[LinkMeasurement, ...]
    step: RateStep
    problems: tuple[str, ...]


def self_test(shaper: str = "auto", *, tolerance: Tolerance | None = None) -> SelfTest:
    """Two datacenters 10 ms apart at 20 Mbit/s, measured, then slowed to 10 Mbit/s. Blocks; raises
    FabricError."""
    tolerance = tolerance or Tolerance()
    topology = Topology.model_validate(_TOPOLOGY)
    ownership = Ownership(f"self-test-{secrets.token_hex(3)}")
    try:
        with up(topology, run_id=ownership.run_id, ownership=ownership, shaper=shaper) as fabric:
            links = asyncio.run(measure(fabric, tolerance=tolerance))
            step = _best_step(fabric, tolerance)
            problems = [reason for link in links for reason in judge(link, tolerance)]
            problems += _step_problems(step, tolerance)
            return SelfTest(shaper=fabric.shaper, links=tuple(links), step=step, problems=tuple(problems))
    finally:
        ownership.release()


def _best_step(fabric: Fabric, tolerance: Tolerance) -> RateStep:
    for _ in range(ATTEMPTS):
        step = _step(fabric)
        if not _step_problems(step, tolerance):
            break
    return step


def _step(fabric: Fabric) -> RateStep:
    fabric.change("wan", "east", Shape(rate_bps=BEFORE_BPS, delay_s=DELAY_S))
    probe = _streamed_step if fabric.shaper == "relay" else _flooded_step
    before, after, applied_in_s = probe(fabric)
    return RateStep(
        before_bps=BEFORE_BPS,
        after_bps=AFTER_BPS,
        measured_before_bps=before,
        measured_after_bps=after,
        applied_in_s=applied_in_s,
    )


def _flooded_step(fabric: Fabric) -> tuple[float, float, float]:
    destination = fabric.socket("west-d0", socket.SOCK_DGRAM)
    destination.bind((fabric.nodes["west-d0"].address, 0))
    source = fabric.socket("east-p0", socket.SOCK_DGRAM)
    with Flood(source, destination, 1.4 * BEFORE_BPS) as flood:
        time.sleep(WATCH_S + 0.2)
        changed_s, applied_in_s = _slow_down(fabric)
        time.sleep(SETTLE_S + WATCH_S)
    start_s = changed_s + SETTLE_S
    before = flood.rate_bps(changed_s - WATCH_S, changed_s)
    return before, flood.rate_bps(start_s, start_s + WATCH_S), applied_in_s


def _streamed_step(fabric: Fabric) -> tuple[float, float, float]:
    """The same with TCP, where there are no packets to see."""
    arrivals: list[tuple[float, int]] = []
    way, begin_s = fabric.way("wan", "east"), time.monotonic()
    length_s = 2 * WATCH_S + SETTLE_S + 0.6
    reader = threading.Thread(
        target=lambda: arrivals.extend(record_stream(way, duration_s=length_s, streams=1))
    )
    reader.start()
    time.sleep(WATCH_S + 0.4)
    changed_s, applied_in_s = _slow_down(fabric)
    reader.join()
    at_s = changed_s - begin_s
    before = windowed_bps(arrivals, at_s - WATCH_S, WATCH_S / 5, 5)
    after = windowed_bps(arrivals, at_s + SETTLE_S, WATCH_S / 5, 5)
    return before / ACHIEVABLE, after / ACHIEVABLE, applied_in_s


def _slow_down(fabric: Fabric) -> tuple[float, float]:
    begin_s = time.monotonic()
    changed_s = fabric.change("wan", "east", Shape(rate_bps=AFTER_BPS, delay_s=DELAY_S))
    return changed_s, changed_s - begin_s


def _step_problems(step: RateStep, tolerance: Tolerance) -> list[str]:
    pairs = [(step.before_bps, step.measured_before_bps), (step.after_bps, step.measured_after_bps)]
    return [
        f"rate step: {format_rate(measured)} on the wire where {format_rate(configured)} was set"
        for configured, measured in pairs
        if abs(measured - configured) > tolerance.rate * configured
    ]
