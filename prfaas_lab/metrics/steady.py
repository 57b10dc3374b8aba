"""The figures of a run's steady state: after it has warmed up, before its arrivals stop and it drains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from prfaas_lab.metrics.handover import Account
from prfaas_lab.metrics.percentiles import Samples

_EXACT = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A span of the run, in its seconds."""

    since_s: float
    until_s: float

    @property
    def length_s(self) -> float:
        return max(0.0, self.until_s - self.since_s)


class SteadyState:
    """Sums over the requests of a window.

    Throughput is what ended within the window over its length; TTFT is of first tokens within it.
    """

    def __init__(self) -> None:
        self.completed = self.routed = self.offloaded = self.crossed_bytes = 0
        self.ttft_ms = Samples(_EXACT, "d")

    def add(self, accounts: Iterable[Account], window: Window) -> None:
        """Count what of requests' ways lies within the window. What never happened does not."""
        since_s, until_s = window.since_s, window.until_s
        for account in accounts:
            record, ttft_ms = account.record, account.ttft_ms
            routed_s, crossed_s = record.routed_s, record.transfer_finished_s
            first_s, ended_s = record.first_token_s, record.ended_s
            if routed_s is not None and since_s <= routed_s < until_s:
                self.routed += 1
                self.offloaded += record.offloaded
            if record.offloaded and crossed_s is not None and since_s <= crossed_s < until_s:
                self.crossed_bytes += record.received_bytes
            if ttft_ms is not None and first_s is not None and since_s <= first_s < until_s:
                self.ttft_ms.add(ttft_ms)
            if record.outcome == "completed" and ended_s is not None and since_s <= ended_s < until_s:
                self.completed += 1

    def summary(self, window: Window) -> dict[str, Any]:
        """What it says of the window; None where nothing happened."""
        ttft, length_s = self.ttft_ms.statistics(), window.length_s
        return {
            "since": window.since_s,
            "until": window.until_s,
            "completed": self.completed,
            "request_throughput": self.completed / length_s if length_s else None,
            "offload_fraction": self.offloaded / self.routed if self.routed else None,
            "offloaded_bps": 8 * self.crossed_bytes / length_s if length_s else None,
            "mean_ttft_ms": ttft.mean,
            "median_ttft_ms": ttft.median,
            "p90_ttft_ms": ttft.p90,
        }
