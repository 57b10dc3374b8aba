"""How far a simulation lies from an emulation of the same scenario, measure by measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

TOLERABLE = 0.10

MEASURES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "request throughput, 1/s": lambda s: s["request_throughput"],
    "TTFT mean, ms": lambda s: s["mean_ttft_ms"],
    "TTFT p50, ms": lambda s: s["median_ttft_ms"],
    "TTFT p90, ms": lambda s: s["p90_ttft_ms"],
    "TTFT p99, ms": lambda s: s["p99_ttft_ms"],
    "TPOT mean, ms": lambda s: s["mean_tpot_ms"],
    "offloaded share": lambda s: s["offload_fraction"],
    "cached share of tokens": lambda s: s["cache"]["hit_rate_tokens"],
    "cached share of requests": lambda s: s["cache"]["hit_rate_requests"],
    "cached tokens": lambda s: s["total_cached_tokens"],
    "link bytes": lambda s: sum(_busiest(link) for link in s["links"].values()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """One measure in both modes. `share` is of the emulated value; None where that is nothing."""

    measure: str
    emulated: float | None
    simulated: float | None

    @property
    def share(self) -> float | None:
        if self.emulated is None or self.simulated is None:
            return None
        if self.emulated == 0:
            return 0.0 if self.simulated == 0 else None
        return (self.simulated - self.emulated) / self.emulated


def errors(emulated: Mapping[str, Any], simulated: Mapping[str, Any]) -> list[Error]:
    """Of two summaries."""
    return [
        Error(measure=name, emulated=read(emulated), simulated=read(simulated))
        for name, read in MEASURES.items()
    ]


def _busiest(link: Mapping[str, Any]) -> float:
    """The direction that carries KVCache: acknowledgements, the other way, are not simulated."""
    return float(max((direction["bytes"] for direction in link["directions"].values()), default=0))
