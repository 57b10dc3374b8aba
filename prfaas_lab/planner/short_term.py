"""The short-term loop's law (paper, 3.4): how load and bandwidth move the threshold between two plans.

The paper names what to watch (egress utilisation, queue depth) and leaves the law open. Ours is equation 7
as feedback. At the best threshold both sides are equally loaded; so while a request would wait longer on
the PrfaaS side than at home, the threshold lies above the plan's, and while it would wait less, below it:

    wait_prfaas = queue of its idlest engine, or where bandwidth is scarce and that is longer,
                  KVCache that has still to cross / what the way gives
    wait_home   = queue of the idlest home engine
    imbalance   = wait_prfaas - wait_home
    factor      = exp(excess / (2 * band_s + (wait_prfaas + wait_home) / 4))
    threshold   = the larger of planned * factor and BASE_TOKENS * (factor - 1)

The second term is for plans near 0, which no factor lifts: they rise as if from `BASE_TOKENS`, and rest
where they are. It is the smaller of the two for every plan of at least so many tokens.

What has still to cross counts from the moment a request is placed, and what the way gives is what its
senders measure (planner.egress). Both are known without delay, so a proportional law needs no memory of
its own: it does not overshoot, and when the cause is gone, so is its effect.

Hysteresis: `excess` is what the imbalance has beyond a zone of `band_s` plus a tenth of the longer wait, in
which nothing moves. Once it has left the zone, the zone is half as wide in that direction until the
imbalance is back in it.

Bandwidth is *scarce* when more than `SCARCE_ABOVE` of what the way gives is in use, or its connections show
congestion, until less than `ABUNDANT_BELOW` is in use and they show none. While it is abundant, KVCache
crosses as it is computed, and the way adds nothing to the wait. A way that is down, or gives nothing, stops
offloading at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

SCARCE_ABOVE = 0.9
ABUNDANT_BELOW = 0.7
LOWEST = 1 / 16
"""Of the plan's threshold: it never falls further."""
BASE_TOKENS = 256
"""From which a smaller plan's threshold rises."""
Direction = Literal["rising", "falling", "resting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What is seen at a tick. Times in seconds of the run; `utilization` of what the way gives, 0 to 1."""

    up: bool
    utilization: float
    prfaas_queue_s: float
    egress_s: float
    """What has still to cross, over what the way gives."""
    home_queue_s: float
    congested: bool = False

    @property
    def offload_s(self) -> float:
        """How long the whole PrfaaS side has in hand at least."""
        return max(self.prfaas_queue_s, self.egress_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortTerm:
    """The law's memory. `threshold` is the effective one, in tokens; `planned` what it holds at rest.
    `direction`: on which side of the zone the imbalance is."""

    planned: float
    threshold: float
    longest: float
    """The longest prompt there is: at this threshold nothing is offloaded."""
    band_s: float
    up: bool = True
    scarce: bool = False
    direction: Direction = "resting"
    reason: str = ""


def follow_plan(state: ShortTerm, planned: float) -> ShortTerm:
    """A new plan takes effect at once, by as much as it differs."""
    state, before = replace(state, planned=planned), state
    if not state.up:
        return state
    if before.planned >= BASE_TOKENS:
        return replace(state, threshold=_bounded(state, before.threshold * planned / before.planned))
    return replace(state, threshold=_bounded(state, before.threshold + planned - before.planned))


def tick(state: ShortTerm, seen: Signals) -> ShortTerm:
    """The state after one look at the deployment; its reason says what moved it."""
    if not seen.up:
        return replace(
            state, up=False, threshold=state.longest, direction="resting", scarce=True,
            reason="the link is down, or gives nothing: nothing is offloaded",
        )  # fmt: skip
    bound = ABUNDANT_BELOW if state.scarce else SCARCE_ABOVE
    scarce = seen.congested or seen.utilization > bound
    prfaas_s = max(seen.prfaas_queue_s, seen.egress_s if scarce else 0.0)
    excess_s = _excess_s(state, prfaas_s, seen.home_queue_s)
    direction: Direction = "rising" if excess_s > 0 else "falling" if excess_s < 0 else "resting"
    factor = math.exp(excess_s / (2 * state.band_s + (prfaas_s + seen.home_queue_s) / 4))
    return replace(
        state,
        up=True,
        threshold=_bounded(state, max(state.planned * factor, BASE_TOKENS * (factor - 1))),
        scarce=scarce,
        direction=direction,
        reason=("" if state.up else "the link is up again; ") + _reason(seen, direction, scarce),
    )


def _excess_s(state: ShortTerm, prfaas_s: float, home_s: float) -> float:
    """What the imbalance has beyond the zone; 0 within."""
    imbalance_s, zone_s = prfaas_s - home_s, state.band_s + max(prfaas_s, home_s) / 10
    above_s = imbalance_s - zone_s / (2 if state.direction == "rising" else 1)
    below_s = -imbalance_s - zone_s / (2 if state.direction == "falling" else 1)
    return max(0.0, above_s) - max(0.0, below_s)


def _bounded(state: ShortTerm, threshold: float) -> float:
    return min(state.longest, max(1.0, state.planned * LOWEST, threshold))


def _reason(seen: Signals, direction: Direction, scarce: bool) -> str:
    where = {"rising": "above the plan", "falling": "below the plan", "resting": "at the plan"}[direction]
    waits = (
        f"PrfaaS {seen.prfaas_queue_s:.2f} s, egress {seen.egress_s:.2f} s, home {seen.home_queue_s:.2f} s"
    )
    regime = ("scarce" if scarce else "abundant") + (", congested" if seen.congested else "")
    return f"{where}; waits: {waits}; egress {seen.utilization:.0%} used ({regime})"
