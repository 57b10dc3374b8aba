"""The short-term loop's law (paper, 3.4): how load and bandwidth move the threshold between two plans.

The paper names what to watch (egress utilisation, queue depth) and leaves the law open. Ours is equation 7
as feedback. At the best threshold both sides are equally loaded; so while a request would wait longer on
the PrfaaS side than at home, the threshold rises, and while it would wait less, it falls:

    wait_prfaas = max(queue of its idlest engine, KVCache in transit / rate of the way)
    wait_home   = queue of the idlest home engine
    imbalance   = wait_prfaas - wait_home

Hysteresis: nothing moves until |imbalance| exceeds a band, `band_s` plus a quarter of the longer wait; then
the threshold goes by a factor `step` a tick in one direction until the imbalance is below half the band.
Queues answer late, so it pauses on every tick at which the imbalance has become smaller. Within the band it
drifts back to the plan's threshold by a quarter of a step a tick.

Bandwidth is *scarce* from `SCARCE_ABOVE` of the way's rate
on, until it is below `ABUNDANT_BELOW`; while it is scarce the threshold does not fall. A way that is down
stops offloading at once; when it is back, the plan's threshold holds again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

SCARCE_ABOVE = 0.9
ABUNDANT_BELOW = 0.7
Direction = Literal["rising", "falling", "resting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What is seen at a tick. Times in seconds of the run; `utilization` of the way's egress, 0 to 1."""

    up: bool
    utilization: float
    prfaas_queue_s: float
    transit_s: float
    """What is in transit, over the way's rate: how long a byte handed over now waits."""
    home_queue_s: float

    @property
    def prfaas_wait_s(self) -> float:
        return max(self.prfaas_queue_s, self.transit_s)

    @property
    def imbalance_s(self) -> float:
        return self.prfaas_wait_s - self.home_queue_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortTerm:
    """The law's memory. `threshold` is the effective one, in tokens; `planned` what it drifts back to."""

    planned: float
    threshold: float
    longest: float
    """The longest prompt there is: at this threshold nothing is offloaded."""
    band_s: float
    step: float = 1.06
    up: bool = True
    scarce: bool = False
    direction: Direction = "resting"
    imbalance_s: float = 0.0
    """At the last tick."""
    reason: str = ""


def follow_plan(state: ShortTerm, planned: float) -> ShortTerm:
    """A new plan takes effect at once."""
    return replace(state, planned=planned, threshold=planned, direction="resting")


def tick(state: ShortTerm, seen: Signals) -> ShortTerm:
    """The state after one look at the deployment; its reason says what moved it."""
    if not seen.up:
        return replace(
            state, up=False, threshold=state.longest, direction="resting", scarce=True,
            reason="the link is down: nothing is offloaded",
        )  # fmt: skip
    if not state.up:
        return replace(
            state, up=True, threshold=state.planned, direction="resting", reason="the link is up again"
        )
    scarce = seen.utilization > (ABUNDANT_BELOW if state.scarce else SCARCE_ABOVE)
    direction = _direction(state, seen)
    if direction == "falling" and scarce:
        direction = "resting"
    easing = direction != "resting" and abs(seen.imbalance_s) < abs(state.imbalance_s)
    moved = state.threshold if easing else _moved(state, direction)
    return replace(
        state,
        threshold=moved,
        scarce=scarce,
        direction=direction,
        imbalance_s=seen.imbalance_s,
        reason=_reason(seen, direction, scarce),
    )


def _direction(state: ShortTerm, seen: Signals) -> Direction:
    """Start beyond the band, go on until within half of it."""
    imbalance, band_s = seen.imbalance_s, state.band_s + max(seen.prfaas_wait_s, seen.home_queue_s) / 4
    if imbalance > (band_s / 2 if state.direction == "rising" else band_s):
        return "rising"
    if imbalance < -(band_s / 2 if state.direction == "falling" else band_s):
        return "falling"
    return "resting"


def _moved(state: ShortTerm, direction: Direction) -> float:
    lowest = max(1.0, state.planned / 16)
    match direction:
        case "rising":
            return min(state.longest, max(state.threshold, 1.0) * state.step)
        case "falling":
            return max(lowest, state.threshold / state.step)
        case "resting":
            gently = float(state.step**0.25)
            if state.threshold > state.planned:
                return max(state.planned, state.threshold / gently)
            return min(state.planned, state.threshold * gently)


def _reason(seen: Signals, direction: Direction, scarce: bool) -> str:
    waits = f"waits: PrfaaS {seen.prfaas_wait_s:.2f} s, home {seen.home_queue_s:.2f} s"
    regime = "scarce" if scarce else "abundant"
    return f"{direction}; {waits}; egress {seen.utilization:.0%} ({regime})"
