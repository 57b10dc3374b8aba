"""What an engine says about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counts now, and totals since the start. `tokens_total`: prompt tokens computed by a prefill
    engine, output tokens given out by a decode engine."""

    queued: int
    running: int
    busy_s: float
    tokens_total: int


class BusyMeter:
    """Adds up the time spent within `with meter:`, including the span that is still open."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._closed_s = 0.0
        self._since: float | None = None

    @property
    def running(self) -> bool:
        return self._since is not None

    @property
    def total_s(self) -> float:
        return self._closed_s + (0.0 if self._since is None else self._clock() - self._since)

    def __enter__(self) -> None:
        self._since = self._clock()

    def __exit__(self, *exception: object) -> None:
        self._closed_s, self._since = self.total_s, None
