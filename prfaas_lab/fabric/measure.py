"""What the links do, measured, against what they were asked to do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass

from prfaas_lab.fabric.build import Direction
from prfaas_lab.fabric.network import Fabric
from prfaas_lab.fabric.probes import goodput_bps, round_trip_s
from prfaas_lab.fabric.shape import ACHIEVABLE, FRAME_BYTES, Shape
from prfaas_lab.spec.scenario import Tolerance
from prfaas_lab.spec.topology import GilbertElliott
from prfaas_lab.units import format_duration, format_rate

ATTEMPTS = 3
TOGETHER_BPS = 1e9
"""Links measured at the same time carry no more than this in all, lest the CPU be the bottleneck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkMeasurement:
    """One direction of a link, as measured between its two gateways."""

    link: str
    source: str
    destination: str
    configured_bps: float | None
    """The nominal rate in force, with the source's egress cap; None when unshaped."""
    expected_bps: float | None
    """The TCP goodput that this rate allows: headers and loss taken off."""
    goodput_bps: float
    configured_rtt_s: float
    """Delay of both directions and the time an echo takes on the wire."""
    rtt_slack_s: float
    """How far jitter may move the median."""
    rtt_s: float
    attempts: int


async def measure(
    fabric: Fabric, *, duration_s: float = 1.0, tolerance: Tolerance | None = None
) -> list[LinkMeasurement]:
    """Every direction of every link that carries anything: first all round trips, then the goodput
    of those that share nothing at the same time. One that lies outside the tolerance is measured up
    to three times, and the measurement nearest its spec is kept: the machine's other work can spoil
    a measurement, but it cannot make a wrong link right."""
    tolerance = tolerance or Tolerance()
    open_directions = [d for d in fabric.directions if _carries(fabric, d)]
    times = await _round_trips(fabric, {link for link, _ in open_directions}, tolerance)
    found: dict[Direction, LinkMeasurement] = {}
    for attempt in range(1, ATTEMPTS + 1):
        again = [d for d in open_directions if d not in found or _is_off(found[d], tolerance)]
        for batch in _batches(fabric, again):
            rates = await asyncio.gather(*(asyncio.to_thread(_goodput, fabric, d, duration_s) for d in batch))
            for direction, rate in zip(batch, rates, strict=True):
                new = _measurement(fabric, direction, times[direction[0]], rate, attempt)
                found[direction] = _nearer(found.get(direction), new)
    return [found[d] for d in open_directions]


def judge(measurement: LinkMeasurement, tolerance: Tolerance) -> list[str]:
    """Why a measured direction is not to be believed; empty when it is as its spec says."""
    reasons = []
    where = f"link {measurement.link} from {measurement.source}"
    expected = measurement.expected_bps
    if expected is not None and abs(measurement.goodput_bps - expected) > tolerance.rate * expected:
        reasons.append(
            f"{where}: goodput {format_rate(measurement.goodput_bps)}, "
            f"expected {format_rate(expected)} of {format_rate(measurement.configured_bps or 0)}"
        )
    allowed_s = tolerance.rtt * measurement.configured_rtt_s + tolerance.rtt_slack + measurement.rtt_slack_s
    if abs(measurement.rtt_s - measurement.configured_rtt_s) > allowed_s:
        reasons.append(
            f"{where}: RTT {format_duration(measurement.rtt_s)}, "
            f"configured {format_duration(measurement.configured_rtt_s)}"
        )
    return reasons


def mean_loss(loss: float | GilbertElliott) -> float:
    """The share of packets that a loss model loses in the long run."""
    if not isinstance(loss, GilbertElliott):
        return loss
    if loss.p + loss.r == 0:
        return loss.loss_good
    bad = loss.p / (loss.p + loss.r)
    return bad * loss.loss_bad + (1 - bad) * loss.loss_good


def configured_rtt_s(there: Shape, back: Shape, *, payload_bytes: int = 16) -> float:
    """Delays both ways, and the time that a small packet takes on the wire each way."""
    bits = (payload_bytes + 66) * 8
    on_wire_s = sum(bits / shape.rate_bps for shape in (there, back) if shape.rate_bps)
    return there.delay_s + back.delay_s + on_wire_s


async def _round_trips(fabric: Fabric, links: Iterable[str], tolerance: Tolerance) -> dict[str, float]:
    """Round trip of each link; one outside the tolerance up to three times, keeping the nearest."""
    found: dict[str, float] = {}
    again = sorted(links)
    for _ in range(ATTEMPTS):
        ways = [fabric.way(name, fabric.topology.links[name].between[0]) for name in again]
        times = await asyncio.gather(*(asyncio.to_thread(round_trip_s, way) for way in ways))
        for name, time_s in zip(again, times, strict=True):
            found[name] = min(found.get(name, math.inf), time_s)  # waiting for a CPU only ever adds
        again = [name for name in again if _rtt_is_off(fabric, name, found[name], tolerance)]
    return found


def _rtt_is_off(fabric: Fabric, link: str, rtt_s: float, tolerance: Tolerance) -> bool:
    there, back = _shapes(fabric, (link, fabric.topology.links[link].between[0]))
    expected_s = configured_rtt_s(there, back)
    allowed_s = tolerance.rtt * expected_s + tolerance.rtt_slack + there.jitter_s + back.jitter_s
    return abs(rtt_s - expected_s) > allowed_s


def _goodput(fabric: Fabric, direction: Direction, duration_s: float) -> float:
    there, back = _shapes(fabric, direction)
    nominal_bps = fabric.nominal_bps(*direction)
    frame_s = FRAME_BYTES * 8 / nominal_bps if nominal_bps else 0.0
    window_s = max(duration_s / 10, 60 * frame_s)  # enough packets that one more or less is no matter
    return goodput_bps(
        fabric.way(*direction),
        streams=4 if frame_s < 1e-3 else 2,
        warm_up_s=min(max(0.3 + 10 * configured_rtt_s(there, back), 200 * frame_s), 3.0),
        window_s=window_s,
        windows=10 if window_s < 0.5 else 5,
    )


def _measurement(
    fabric: Fabric, direction: Direction, rtt_s: float, rate_bps: float, attempt: int
) -> LinkMeasurement:
    link, source = direction
    there, back = _shapes(fabric, direction)
    nominal = fabric.nominal_bps(link, source)
    expected = None if nominal is None else nominal * ACHIEVABLE * (1 - mean_loss(there.loss))
    return LinkMeasurement(
        link=link,
        source=source,
        destination=fabric.far_end(link, source),
        configured_bps=nominal,
        expected_bps=expected,
        goodput_bps=rate_bps,
        configured_rtt_s=configured_rtt_s(there, back),
        rtt_slack_s=there.jitter_s + back.jitter_s,
        rtt_s=rtt_s,
        attempts=attempt,
    )


def _nearer(old: LinkMeasurement | None, new: LinkMeasurement) -> LinkMeasurement:
    def miss(measurement: LinkMeasurement) -> float:
        return abs(measurement.goodput_bps - (measurement.expected_bps or measurement.goodput_bps))

    return new if old is None or miss(new) <= miss(old) else old


def _is_off(measurement: LinkMeasurement, tolerance: Tolerance) -> bool:
    expected = measurement.expected_bps
    return expected is not None and abs(measurement.goodput_bps - expected) > tolerance.rate * expected


def _batches(fabric: Fabric, wanted: list[Direction]) -> list[list[Direction]]:
    """Directions that may be measured together: no link twice, no capped egress twice, and no more
    in all than the machine can carry."""
    batches: list[tuple[set[str], float, list[Direction]]] = []
    for link, source in wanted:
        shares = {f"link {link}"}
        if fabric.egress_bps(source) is not None:
            shares.add(f"egress {source}")
        rate = fabric.nominal_bps(link, source) or math.inf
        for i, (used, carried, members) in enumerate(batches):
            if not used & shares and carried + rate <= TOGETHER_BPS:
                members.append((link, source))
                batches[i] = (used | shares, carried + rate, members)
                break
        else:
            batches.append((shares, rate, [(link, source)]))
    return [members for _, _, members in batches]


def _carries(fabric: Fabric, direction: Direction) -> bool:
    """Whether anything can cross the link and come back at all."""
    return all(shape.rate_bps != 0 and mean_loss(shape.loss) < 1 for shape in _shapes(fabric, direction))


def _shapes(fabric: Fabric, direction: Direction) -> tuple[Shape, Shape]:
    link, source = direction
    return fabric.shape(link, source), fabric.shape(link, fabric.far_end(link, source))
