"""Equation 6 over every (threshold, roles): the exhaustive grid, one array per quantity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prfaas_lab.model.profile import Floats
from prfaas_lab.planner import throughput
from prfaas_lab.planner.classes import Classes
from prfaas_lab.planner.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """Rows are role choices, columns thresholds."""

    classes: Classes
    roles: Sequence[Mapping[str, int]]
    prfaas: Floats
    """Theta_prfaas per threshold."""
    pd_p: Floats
    """Theta_pd-p per role choice and threshold."""
    pd_d: Floats
    """Theta_pd-d per role choice."""

    @property
    def rate(self) -> Floats:
        """Lambda_max, equation 6."""
        return throughput.lambda_max(self.prfaas, self.pd_p, self.pd_d[:, None], self.classes.p)

    @property
    def prefill_rate(self) -> Floats:
        """Equation 6 without decode: decides between thresholds when decode binds."""
        return throughput.lambda_max(self.prfaas, self.pd_p, np.inf, self.classes.p)

    def ranked(self) -> Iterator[tuple[int, int]]:
        """Every (row, column), the highest rate first, then the best balanced prefill (equation 7)."""
        rate, prefill = self.rate, self.prefill_rate
        order = np.lexsort((-prefill.ravel(), -rate.ravel()))
        return ((int(i) // rate.shape[1], int(i) % rate.shape[1]) for i in order)


def grid(setting: Setting, thresholds: Floats, roles: Sequence[Mapping[str, int]]) -> Grid:
    """Evaluate equations 3-5 for all thresholds and role choices at once; sites add up."""
    classes, fleet = Classes(setting.lengths, setting.mode, thresholds), setting.fleet
    prfaas = np.zeros(thresholds.size)
    for site in fleet.prfaas:
        profile = site.profile
        prefill_s, kv_bytes = classes.long_mean(profile.prefill), classes.long_mean(profile.kvcache)
        prfaas += throughput.theta_prfaas(site.instances, prefill_s, kv_bytes, setting.egress_bps(site))
    pd_p = np.zeros((len(roles), thresholds.size))
    pd_d = np.zeros(len(roles))
    for site in fleet.local:
        n_p = np.asarray([choice[site.name] for choice in roles], dtype=np.float64)
        pd_p += throughput.theta_pd_p(n_p[:, None], classes.short_mean(site.profile.prefill))
        pd_d += (site.instances - n_p) * setting.decode_rate(site)
    # An empty class has no mean: its Theta is 0, and its share of 0 keeps it from binding.
    return Grid(
        classes=classes, roles=roles, prfaas=np.nan_to_num(prfaas), pd_p=np.nan_to_num(pd_p), pd_d=pd_d
    )
