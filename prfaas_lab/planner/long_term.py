"""The long-term loop's decision (paper, 3.4): other roles or another threshold, from what was seen lately.

The window's requests are the law of lengths, the way's mean rate is the bandwidth, and equations 3-6 do the
rest. Theta_prfaas + Theta_pd-p << Theta_pd-d is prefill-bound, >> decode-bound: the search over (t, N_p)
finds by how much. One instance is converted at a time, and only when the throughput it would bring pays:
its gain must exceed `margin` and outweigh the instance's absence while it converts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from prfaas_lab.planner import lengths
from prfaas_lab.planner.grid import grid
from prfaas_lab.planner.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do for the next period. `convert` is +1 for D to P, -1 for P to D, 0 for neither."""

    threshold_tokens: int
    convert: int
    rate_now: float
    """Equation 6 with the present roles and the best threshold for them, requests/s."""
    rate_best: float
    """With the best roles."""
    reason: str


def replan(
    setting: Setting, n_p: int, threshold_tokens: float,
    *, margin: float, cost_s: float, period_s: float, requests: int | None = None,
) -> Decision:  # fmt: skip
    """For one local site, planned for `threshold_tokens` until now. `cost_s` is how long a conversion takes
    an instance away, of `period_s` until the next decision: a gain has to make up for it. With the same
    roles the threshold stays, unless another gains more than `margin` and than the `requests` that the
    lengths are taken from explain by chance (None: the lengths are the law)."""
    chance = 1 / math.sqrt(requests) if requests else 0.0
    (site,) = setting.fleet.local
    cuts = np.append(lengths.thresholds(setting.lengths, digits=2), threshold_tokens)
    roles = [{site.name: count} for count in range(1, site.instances)]
    table = grid(setting, cuts, roles)
    best_rate = table.rate.max(axis=1)
    now, best = n_p - 1, int(np.argmax(best_rate))
    step = int(np.sign(best - now))
    here, there = float(best_rate[now]), float(best_rate[now + step])
    price = cost_s / period_s / site.instances
    worth = step != 0 and there > here * (1 + margin + price)
    row = now + step if worth else now
    column = int(np.lexsort((-table.prefill_rate[row], -table.rate[row]))[0])
    if not worth and table.prefill_rate[row, column] < table.prefill_rate[row, -1] * (1 + margin + chance):
        column = -1
    bound = "prefill" if step > 0 else "decode" if step < 0 else "balanced"
    reason = (
        f"{bound}-bound: {here:.3g} req/s at N_p {n_p}, {there:.3g} at {n_p + step}, best {best + 1}"
        if step
        else f"N_p {n_p} is best: {here:.3g} req/s"
    )
    return Decision(
        threshold_tokens=max(0, round(float(cuts[column]))),
        convert=step if worth else 0,
        rate_now=here,
        rate_best=float(best_rate[best]),
        reason=reason,
    )


def with_rate(setting: Setting, rate_bps: float) -> Setting:
    """The setting with every way at this rate."""
    caps = tuple(replace(cap, rate_bps=rate_bps) for cap in setting.fleet.caps)
    return replace(setting, fleet=replace(setting.fleet, caps=caps))
