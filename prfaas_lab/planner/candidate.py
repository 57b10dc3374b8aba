"""One way to deploy a setting, judged: its rate with the extensions, its bottleneck, its TTFT, its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prfaas_lab.errors import LabError
from prfaas_lab.model.profile import Curve
from prfaas_lab.planner import ttft
from prfaas_lab.planner.classes import Classes
from prfaas_lab.planner.deployment import Deployment, PolicyName
from prfaas_lab.planner.flow import best_flow, class_groups
from prfaas_lab.planner.queueing import NO_WAIT, Wait
from prfaas_lab.planner.roles import pairs
from prfaas_lab.planner.setting import WIRE_GOODPUT, Setting
from prfaas_lab.planner.throughput import per_share
from prfaas_lab.planner.ttft import Stream

_BINDING = 0.01
_BISECTIONS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A policy with its choices. `cut` is the length above which requests may be offloaded.

    Length-blind policies have no threshold: their cut lies below every length, and `p` is a free share.
    """

    policy: PolicyName
    threshold_tokens: int | None
    cut: float
    p: float
    n_p: Mapping[str, int]
    rate: float
    """Equation 6."""


def settled_rate(setting: Setting, candidate: Candidate, *, above: float = 0.0) -> float:
    """The rate that remains of equation 6 with routes and SLO; 0 when it would not exceed `above`."""
    judged = _Judged(setting, candidate)
    routed = judged.routed_rate()
    return judged.rate_within_slo(judged.streams(), routed, above=above) if routed > above else 0.0


def judge(setting: Setting, candidate: Candidate) -> Deployment:
    """The deployment of a candidate. Raises LabError when a price is missing."""
    return _Judged(setting, candidate).deployment()


class _Judged:
    def __init__(self, setting: Setting, candidate: Candidate) -> None:
        self.setting, self.candidate = setting, candidate
        self.blind = candidate.threshold_tokens is None
        # A length-blind policy sends the same mix everywhere, so both its classes are "all requests".
        low = setting.lengths.support[0] - 1.0
        self.long = Classes(setting.lengths, setting.mode, np.asarray([low if self.blind else candidate.cut]))
        high = math.inf if self.blind else candidate.cut
        self.short = Classes(setting.lengths, setting.mode, np.asarray([high]))

    def deployment(self) -> Deployment:
        setting, candidate = self.setting, self.candidate
        streams = self.streams()
        routed = self.routed_rate()
        rate = self.rate_within_slo(streams, routed)
        queueing = setting.extensions.queueing
        met = rate < routed and rate > 0
        waits = self.waits(streams, rate if met or queueing is None else rate * queueing.load)
        prefillers = sum(candidate.n_p.values())
        remote, local = candidate.p > 0, candidate.p < 1
        kv_bps = self.kv_bps(rate)
        egress_bps = self.egress_bps(kv_bps)
        hourly_usd = self.hourly_usd(egress_bps)
        return Deployment(
            policy=candidate.policy,
            mode=setting.mode,
            lambda_max=rate,
            threshold_tokens=candidate.threshold_tokens,
            n_prfaas=setting.fleet.n_prfaas,
            n_p=prefillers,
            n_d=setting.fleet.n_local - prefillers,
            theta_prfaas=self.theta_prfaas() if remote else None,
            theta_pd_p=self.theta_pd_p() if local else None,
            theta_pd_d=self.theta_pd_d(),
            p=candidate.p,
            l_long=float(self.long.l_long[0]) if remote else None,
            l_short=float(self.short.l_short[0]) if local else None,
            egress_bps=egress_bps,
            kv_bps=kv_bps,
            bottleneck=self.bottleneck(routed, rate),
            mean_ttft_s=ttft.mean_s(streams, waits),
            p90_ttft_s=ttft.percentile_s(streams, waits, 0.9),
            tpot_s=self.tpot_s(),
            roles=pairs(setting.fleet, candidate.n_p),
            usd_per_hour=hourly_usd,
            requests_per_usd=None if hourly_usd is None else rate * 3600 / hourly_usd,
        )

    # -- equations 3-5 of every site ------------------------------------------------------------

    def compute_rates(self) -> dict[str, float]:
        """N / T_prefill of every PrfaaS site."""
        sites = self.setting.fleet.prfaas
        return {s.name: s.instances / float(self.long.long_mean(s.profile.prefill)[0]) for s in sites}

    def link_rates(self) -> dict[str, float]:
        """B_out / S_kv of every PrfaaS site."""
        return {
            s.name: self.setting.egress_bps(s) / (8 * float(self.long.long_mean(s.profile.kvcache)[0]))
            for s in self.setting.fleet.prfaas
        }

    def local_rates(self) -> dict[str, float]:
        """N_p / T_prefill of every local site."""
        return {
            s.name: self.candidate.n_p[s.name] / float(self.short.short_mean(s.profile.prefill)[0])
            for s in self.setting.fleet.local
        }

    def theta_prfaas(self) -> float:
        link = self.link_rates()
        return sum(min(rate, link[name]) for name, rate in self.compute_rates().items())

    def theta_pd_p(self) -> float:
        return sum(self.local_rates().values())

    def theta_pd_d(self) -> float:
        n_p = self.candidate.n_p
        return sum(
            (s.instances - n_p[s.name]) * self.setting.decode_rate(s) for s in self.setting.fleet.local
        )

    # -- the rate with routes and SLO -----------------------------------------------------------

    def routed_rate(self) -> float:
        """Equation 6, or less where several sites share caps or cannot reach each other's decode."""
        if self.setting.fleet.is_plain:
            return self.candidate.rate
        groups = class_groups(self.setting, self.candidate.p, self.long, self.short)
        return min(self.candidate.rate, best_flow(self.setting, groups, self.candidate.n_p).rate)

    def rate_within_slo(self, streams: list[Stream], routed: float, *, above: float = 0.0) -> float:
        """The highest rate in (above, routed] whose TTFT meets the SLO; 0 when none does."""
        limit_s = self.setting.extensions.slo.ttft_p90_s
        if limit_s is None or routed == 0:
            return routed

        def meets(rate: float) -> bool:
            return ttft.share_within(streams, self.waits(streams, rate), limit_s) >= 0.9

        if not meets(above):
            return 0.0
        if meets(routed):
            return routed
        low, high = above, routed
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if meets(middle) else (low, middle)
        return low

    # -- what a request sees ----------------------------------------------------------------------

    def streams(self) -> list[Stream]:
        """Requests by the site that prefills them, each class split by the sites' capacity."""
        found: list[Stream] = []
        below = min(self.setting.lengths.support[0], 0.0) - 1.0
        if self.candidate.p > 0:
            low = below if self.blind else self.candidate.cut
            weight = self.candidate.p if self.blind else 1.0
            for name, part in _parts(self.compute_rates()).items():
                site = next(s for s in self.setting.fleet.prfaas if s.name == name)
                extra_s = self.network_s(name)
                curve, servers = site.profile.prefill, site.instances
                found.append(self._stream(low, math.inf, weight * part, curve, servers, extra_s))
        if self.candidate.p < 1:
            high = math.inf if self.blind else self.candidate.cut
            weight = 1 - self.candidate.p if self.blind else 1.0
            for name, part in _parts(self.local_rates()).items():
                curve = next(s for s in self.setting.fleet.local if s.name == name).profile.prefill
                found.append(self._stream(below, high, weight * part, curve, self.candidate.n_p[name], 0.0))
        return found

    def _stream(
        self, low: float, high: float, share: float, curve: Curve, servers: int, extra_s: float
    ) -> Stream:
        law = self.setting.lengths
        return Stream(law=law, low=low, high=high, share=share, curve=curve, servers=servers, extra_s=extra_s)

    def network_s(self, name: str) -> float:
        """What the network adds to an offloaded request's TTFT."""
        network = self.setting.extensions.network
        if network is None:
            return 0.0
        site = next(s for s in self.setting.fleet.prfaas if s.name == name)
        kv_bytes = float(self.long.long_mean(site.profile.kvcache)[0])
        return network.latency_s(kv_bytes, self.setting.egress_bps(site) / site.instances)

    def waits(self, streams: list[Stream], rate: float) -> list[Wait]:
        """What each stream waits for an instance when all arrive at `rate`."""
        queueing = self.setting.extensions.queueing
        if queueing is None:
            return [NO_WAIT] * len(streams)
        return [stream.waiting(rate, queueing.arrival_cv2) for stream in streams]

    def tpot_s(self) -> float:
        """The slowest site's decode step at its batch."""
        sites = self.setting.fleet.local
        return max(site.profile.step_s(max(1.0, self.setting.batch(site))) for site in sites)

    # -- what binds, what it costs ------------------------------------------------------------------

    def bottleneck(self, routed: float, rate: float) -> str:
        if rate < routed * (1 - 1e-6):
            return "slo"
        if routed < self.candidate.rate * (1 - 1e-6):
            return "routes"
        p = self.candidate.p
        limits = {"pd-d": self.theta_pd_d()}
        if p > 0:
            compute, link = sum(self.compute_rates().values()), sum(self.link_rates().values())
            limits["prfaas-compute"] = float(per_share(compute, p))
            limits["prfaas-link"] = float(per_share(link, p))
        if p < 1:
            limits["pd-p"] = float(per_share(self.theta_pd_p(), 1 - p))
        order = ("prfaas-compute", "prfaas-link", "pd-p", "pd-d")
        least = min(limits.values())
        return "+".join(name for name in order if limits.get(name, math.inf) <= least * (1 + _BINDING))

    def egress_bps(self, kv_bps: float) -> float:
        """What the KVCache makes on the wire."""
        network = self.setting.extensions.network
        carried = sum(self.setting.egress_bps(site) for site in self.setting.fleet.prfaas)
        nominal = carried / network.goodput if network else carried
        return min(kv_bps / WIRE_GOODPUT, nominal)

    def kv_bps(self, rate: float) -> float:
        """KVCache that leaves the PrfaaS sites at a rate."""
        if self.candidate.p == 0:
            return 0.0
        parts = _parts(self.compute_rates())
        curves = {s.name: s.profile.kvcache for s in self.setting.fleet.prfaas}
        kv_bytes = sum(part * float(self.long.long_mean(curves[name])[0]) for name, part in parts.items())
        return 8 * rate * self.candidate.p * kv_bytes

    def hourly_usd(self, egress_bps: float) -> float | None:
        """GPUs and egress; None without prices."""
        prices = self.setting.extensions.prices
        if prices is None:
            return None
        total = egress_bps / 8 * 3600 / 1e9 * prices.egress_gb_usd
        for site in (*self.setting.fleet.prfaas, *self.setting.fleet.local):
            hardware = site.profile.hardware
            if hardware not in prices.gpu_hour_usd:
                raise LabError(f"no price for hardware {hardware!r}", remedy=f"give --price {hardware}=USD")
            total += site.instances * site.profile.gpus * prices.gpu_hour_usd[hardware]
        return total


def _parts(rates: Mapping[str, float]) -> dict[str, float]:
    """Each site's part of its class, by capacity; sites without any are left out."""
    total = sum(rates.values())
    return {name: rate / total for name, rate in rates.items() if rate > 0}
