"""Latency and throughput of the last seconds and of the whole run, for the live screen.

Driven by the events' own time: no clock, and of fixed size whatever the rate of tokens.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.percentiles import Sketch, Statistics
from prfaas_lab.metrics.requests import RequestRecord

WINDOW_S = 10.0
_SLOT_S = 1.0


@dataclass(slots=True, kw_only=True)
class Aggregate:
    """Sketches of latencies in ms, and counts."""

    ttft: Sketch = field(default_factory=Sketch)
    tpot: Sketch = field(default_factory=Sketch)
    itl: Sketch = field(default_factory=Sketch)
    requests: int = 0
    tokens: int = 0

    def merge(self, other: Aggregate) -> None:
        self.ttft.merge(other.ttft)
        self.tpot.merge(other.tpot)
        self.itl.merge(other.itl)
        self.requests += other.requests
        self.tokens += other.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the screen shows of a span of time; rates are None while no time has passed."""

    ttft_ms: Statistics
    tpot_ms: Statistics
    itl_ms: Statistics
    requests_per_s: float | None
    tokens_per_s: float | None


class Windows:
    """The last WINDOW_S seconds (to the slot: between 9 and 10 of them) and the whole run."""

    def __init__(self) -> None:
        self._whole = Aggregate()
        self._slots: deque[tuple[int, Aggregate]] = deque()
        self._first_s: float | None = None
        self._last_s = 0.0

    def observe(self, event: ev.RequestEvent, record: RequestRecord) -> None:
        """Take in an event and the record that already holds it."""
        if self._first_s is None:
            self._first_s = event.at_s
        match event:
            case ev.TokensEmitted():
                self._tokens(event, record)
            case ev.RequestFinished() if record.ends == 1:
                self._finished(event, record)

    def whole(self) -> Figures:
        """Since the first request's first event, until the last token or finish."""
        span_s = 0.0 if self._first_s is None else self._last_s - self._first_s
        return _figures(self._whole, span_s)

    def last(self, now_s: float) -> Figures:
        """Of the window that ends at `now_s`."""
        since = _slot(now_s - WINDOW_S) + 1
        recent = Aggregate()
        for slot, aggregate in self._slots:
            if slot >= since:
                recent.merge(aggregate)
        start_s = max(since * _SLOT_S, now_s if self._first_s is None else self._first_s)
        return _figures(recent, now_s - start_s)

    def _tokens(self, event: ev.TokensEmitted, record: RequestRecord) -> None:
        first = record.emitted_tokens == event.count
        for aggregate in (self._whole, self._slot(event.at_s)):
            aggregate.tokens += event.count
            if first and record.ttft_s is not None:
                aggregate.ttft.add(1e3 * max(0.0, record.ttft_s))
            elif record.gaps_s:
                aggregate.itl.add(1e3 * max(0.0, record.gaps_s[-1]))

    def _finished(self, event: ev.RequestFinished, record: RequestRecord) -> None:
        for aggregate in (self._whole, self._slot(event.at_s)):
            aggregate.requests += 1
            if record.tpot_s is not None:
                aggregate.tpot.add(1e3 * max(0.0, record.tpot_s))

    def _slot(self, at_s: float) -> Aggregate:
        """The aggregate of an instant; what comes late counts in the newest slot."""
        self._last_s = max(self._last_s, at_s)
        slot = _slot(self._last_s)
        if not self._slots or self._slots[-1][0] < slot:
            self._slots.append((slot, Aggregate()))
            while self._slots[0][0] <= slot - WINDOW_S / _SLOT_S - 1:
                self._slots.popleft()
        return self._slots[-1][1]


def _slot(at_s: float) -> int:
    return math.floor(at_s / _SLOT_S)


def _figures(aggregate: Aggregate, span_s: float) -> Figures:
    return Figures(
        ttft_ms=aggregate.ttft.statistics(),
        tpot_ms=aggregate.tpot.statistics(),
        itl_ms=aggregate.itl.statistics(),
        requests_per_s=aggregate.requests / span_s if span_s > 0 else None,
        tokens_per_s=aggregate.tokens / span_s if span_s > 0 else None,
    )
