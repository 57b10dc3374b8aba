"""The figures of a run's steady state: after it has warmed up, before its arrivals stop and it drains."""

from __future__ import annotations

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

    def holds(self, at_s: float | None) -> bool:
        """Whether something happened within. What never happened did not."""
        return at_s is not None and self.since_s <= at_s < self.until_s


class SteadyState:
    """Sums over the requests of a window, added one by one.

    Throughput is what ended within the window over its length; TTFT is of first tokens within it.
    """

    def __init__(self) -> None:
        self.completed = self.routed = self.offloaded = self.crossed_bytes = 0
        self.ttft_ms = Samples(_EXACT, "d")

    def add(self, account: Account, window: Window) -> None:
        """Count what of a request's way lies within the window."""
        record = account.record
        self.completed += record.outcome == "completed" and window.holds(record.ended_s)
        if window.holds(record.routed_s):
            self.routed += 1
            self.offloaded += record.offloaded
        if record.offloaded and window.holds(record.transfer_finished_s):
            self.crossed_bytes += record.received_bytes
        if window.holds(record.first_token_s) and account.ttft_ms is not None:
            self.ttft_ms.add(account.ttft_ms)

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
