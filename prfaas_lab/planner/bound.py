"""The limit: the best Lambda that any routing by length can reach, so that every policy's distance shows.

While compute binds, a threshold is the optimal rule as soon as T_local / T_prfaas grows with length.
When the link binds it need not be: what counts then is the local time saved per byte sent, and that may
peak amid the lengths. The programme's routing says which lengths it would send.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from prfaas_lab.model.profile import Curve, Floats
from prfaas_lab.planner import lengths
from prfaas_lab.planner.flow import Flow, Group, best_flow
from prfaas_lab.planner.setting import Setting

SLICES = 192


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bound:
    """The best rate over all length-dependent routings, and the routing that reaches it."""

    lambda_max: float
    n_p: Mapping[str, int]
    edges: Floats
    """Slice i holds edges[i] < L <= edges[i + 1] tokens."""
    remote_share: Floats
    """How much of each slice is prefilled by PrfaaS."""

    @property
    def is_threshold(self) -> bool:
        """Whether it sends exactly the long ones (one slice, the threshold's own, may be split)."""
        inner = (self.remote_share > 1e-6) & (self.remote_share < 1 - 1e-6)
        return bool(np.all(np.diff(self.remote_share) >= -1e-6) and inner.sum() <= 1)

    def shortfall(self, rate: float) -> float:
        """How far below the limit a rate stays: 0.03 is 3 %."""
        return 1 - rate / self.lambda_max


def best_rate(
    setting: Setting, *, thresholds: Iterable[float] = (), roles: Mapping[str, int] | None = None
) -> Bound:
    """The limit of a setting, in exact terms whatever its mode.

    Lengths are cut into about SLICES slices at fixed places and at `thresholds`; every policy whose
    threshold is among them stays within the bound. Over all roles, or for the ones given.
    """
    exact = replace(setting, mode="exact")
    edges = _edges(exact, thresholds)
    flow = best_flow(exact, _slices(exact, edges), roles)
    kept = np.diff(exact.lengths.partial(0, edges)) > 0
    return Bound(
        lambda_max=flow.rate,
        n_p=flow.n_p,
        edges=np.concatenate([edges[:1], edges[1:][kept]]),
        remote_share=_shares(flow),
    )


def _edges(setting: Setting, thresholds: Iterable[float]) -> Floats:
    law, fleet = setting.lengths, setting.fleet
    low, high = law.support
    knots = [x for site in (*fleet.prfaas, *fleet.local) for x in site.profile.prefill.inner_knots()]
    spaced = [np.geomspace(max(low, 1.0), high, SLICES // 2), np.linspace(low, high, SLICES // 2)]
    cuts = np.concatenate([*spaced, knots, list(thresholds)])
    inside = cuts[(cuts > low) & (cuts < high)]
    return np.unique(np.concatenate([[low - 1], inside, [high]]))


def _slices(setting: Setting, edges: Floats) -> list[Group]:
    law, fleet = setting.lengths, setting.fleet
    mass = np.diff(law.partial(0, edges))

    def means(curve: Curve) -> Floats:
        total = np.diff(lengths.partial_mean(law, curve, edges))
        return np.divide(total, mass, out=np.zeros_like(total), where=mass > 0)

    prefill_s = {site.name: means(site.profile.prefill) for site in (*fleet.prfaas, *fleet.local)}
    kv_bytes = {site.name: means(site.profile.kvcache) for site in fleet.prfaas}
    return [
        Group(
            share=float(share),
            prefill_s={name: float(values[i]) for name, values in prefill_s.items()},
            kv_bytes={name: float(values[i]) for name, values in kv_bytes.items()},
        )
        for i, share in enumerate(mass)
    ]


def _shares(flow: Flow) -> Floats:
    return np.clip(flow.remote_share, 0.0, 1.0)
