"""What is to be planned: a fleet, a workload, a mode, and the extensions that the paper lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from prfaas_lab.planner.fleet import Cap, Fleet, Site
from prfaas_lab.planner.lengths import Discrete, LengthLaw, Mixture, scaled

Mode = Literal["paper", "exact"]
WIRE_GOODPUT = 0.956
"""KVCache as a share of what TCP puts on the wire: headers of full segments (measured)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixHits:
    """A share of requests finds a share of its prompt in a cache, so that less is left to prefill.

    The uncached length becomes a mixture: L, or (1 - reused) L on a hit. That a hit's tokens still
    attend to the cached ones is not modelled (linear layers do not; a few full ones do).
    """

    hit_rate: float
    reused: float

    def uncached(self, law: LengthLaw) -> LengthLaw:
        """The law of what is left to prefill."""
        if self.hit_rate == 0 or self.reused == 0:
            return law
        rest = scaled(law, 1 - self.reused) if self.reused < 1 else Discrete.of([0])
        if self.hit_rate == 1:
            return rest
        return Mixture(((1 - self.hit_rate, law), (self.hit_rate, rest)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What distance costs an offloaded request.

    Adds to its TTFT `handshake_rtts` round trips (0 when connections are kept open), half a round trip
    for the last byte, and the part of its KVCache that layer-wise pipelining cannot hide
    (`exposed_share`, 1/layers when the last layer's leaves after prefill) at its instance's share of
    the link. Limits each instance to `streams` TCP windows a round trip, and the link to `goodput` of
    its nominal rate (WIRE_GOODPUT for full TCP segments).
    """

    rtt_s: float
    handshake_rtts: float = 0.0
    exposed_share: float = 0.0
    streams: int | None = None
    window_bytes: int = 4 * 2**20
    goodput: float = 1.0

    def instance_limit_bps(self) -> float:
        """What one instance's windows let through; inf without a stream count or a distance."""
        if self.streams is None or self.rtt_s == 0:
            return math.inf
        return self.streams * self.window_bytes * 8 / self.rtt_s

    def latency_s(self, kv_bytes: float, rate_bps: float) -> float:
        """What a request of `kv_bytes` waits for the network, when it gets `rate_bps`."""
        exposed = self.exposed_share * kv_bytes * 8 / rate_bps if self.exposed_share else 0.0
        return (self.handshake_rtts + 0.5) * self.rtt_s + exposed


@dataclass(frozen=True, slots=True, kw_only=True)
class Queueing:
    """Waiting for an instance, M/G/k (see `queueing`), at `load` times Lambda_max.

    `arrival_cv2` is the squared coefficient of variation of the gaps: 1 is Poisson.
    """

    load: float = 0.8
    arrival_cv2: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars: per GPU and hour by hardware name, per decimal GB that leaves a PrfaaS site."""

    gpu_hour_usd: Mapping[str, float]
    egress_gb_usd: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What must be met: 90 % of TTFTs, and the time per output token. None demands nothing."""

    ttft_p90_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Extensions:
    """What the paper leaves out. All off is the paper's setting."""

    hits: PrefixHits | None = None
    network: Network | None = None
    queueing: Queueing | None = None
    prices: Prices | None = None
    slo: Slo = field(default_factory=Slo)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One planning problem. `prompts` is the law of whole prompts, before any prefix hit."""

    fleet: Fleet
    prompts: LengthLaw
    output_tokens: float
    mode: Mode = "paper"
    extensions: Extensions = field(default_factory=Extensions)

    @property
    def lengths(self) -> LengthLaw:
        """The law of uncached lengths, L in the equations."""
        hits = self.extensions.hits
        return self.prompts if hits is None else hits.uncached(self.prompts)

    def caps(self) -> tuple[Cap, ...]:
        """The fleet's bandwidth limits as KVCache meets them: goodput, and what windows let through."""
        network, fleet = self.extensions.network, self.fleet
        if network is None:
            return fleet.caps
        usable = tuple(replace(cap, rate_bps=cap.rate_bps * network.goodput) for cap in fleet.caps)
        limit_bps = network.instance_limit_bps()
        if math.isinf(limit_bps):
            return usable
        return usable + tuple(
            Cap(
                name=f"windows of {site.name}",
                rate_bps=site.instances * limit_bps,
                pairs=frozenset((site.name, local.name) for local in fleet.local),
            )
            for site in fleet.prfaas
        )

    def egress_bps(self, site: Site) -> float:
        """B_out of a PrfaaS site in equation 3; inf when nothing limits it.

        Exact for one pair of sites; an upper bound where several pairs share a cap.
        """
        caps, ways = self.caps(), [(site.name, local.name) for local in self.fleet.local]
        own = [cap.rate_bps for cap in caps if cap.pairs.issuperset(ways)]
        single = [min((cap.rate_bps for cap in caps if way in cap.pairs), default=math.inf) for way in ways]
        return min([sum(single), *own])

    def batch(self, site: Site) -> int:
        """BS_max in equation 5: the profile's, or less where the TPOT to be met asks for it."""
        decoding = site.profile.decoding()
        tpot_s = self.extensions.slo.tpot_s
        if tpot_s is None:
            return decoding.bs_max
        reach = min(decoding.step.inverse(tpot_s), decoding.bs_max)
        return math.floor(reach + 1e-9) if reach >= 1 else 0

    def decode_rate(self, site: Site) -> float:
        """Equation 5 of one instance: requests per second it decodes, 0 when the SLO forbids all."""
        batch = self.batch(site)
        return batch / (site.profile.step_s(batch) * self.output_tokens) if batch >= 1 else 0.0
