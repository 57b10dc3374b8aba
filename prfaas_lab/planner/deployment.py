"""What the search answers: one way to deploy a fleet, and what it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prfaas_lab.planner.setting import Mode

PolicyName = Literal["prfaas", "homogeneous", "naive", "balanced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Roles, threshold and predicted figures of one policy on one fleet.

    None stands where the paper's tables have a dash: no threshold, no such class, no such stage.
    Rates are requests per second, lengths tokens. `lambda_max` is equation 6's, or, where an SLO on
    TTFT is set, the highest rate that still meets it (0 when none does).
    """

    policy: PolicyName
    mode: Mode
    lambda_max: float
    threshold_tokens: int | None
    n_prfaas: int
    n_p: int
    n_d: int
    theta_prfaas: float | None
    theta_pd_p: float | None
    theta_pd_d: float
    p: float
    """Share of requests prefilled by PrfaaS."""
    l_long: float | None
    l_short: float | None
    egress_bps: float
    """What leaves the PrfaaS sites on the wire at lambda_max: `kv_bps` and TCP/IP headers, at most what
    the links carry (equation 3 knows no headers, so a full link may be full of KVCache)."""
    kv_bps: float
    """KVCache alone: p * lambda_max * S_kv(long)."""
    bottleneck: str
    """Stages within 1 % of binding, joined by +: prfaas-compute, prfaas-link, pd-p, pd-d, routes, slo."""
    mean_ttft_s: float
    p90_ttft_s: float
    tpot_s: float
    """Decode step at the batch in use."""
    roles: Mapping[str, tuple[int, int]]
    """(prefill, decode) instances of each local site."""
    usd_per_hour: float | None = None
    requests_per_usd: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
