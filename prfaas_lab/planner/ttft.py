"""Time to first token over a mixture of streams: mean, percentile, and share within a limit.

A stream is a part of the requests served by one pool of instances. Without extensions its TTFT is the
pure prefill time, as in the paper's Table 6; both modes take it over the true distribution (a mean or
percentile of TTFT has no "at the mean length").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prfaas_lab.model.profile import Curve, Floats
from prfaas_lab.planner import lengths
from prfaas_lab.planner.lengths import LengthLaw
from prfaas_lab.planner.queueing import NO_WAIT, Wait, wait

_BINS = 256


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Requests with low < L <= high, a `share` of those, on a pool of `servers` instances."""

    law: LengthLaw
    low: float
    high: float
    share: float
    curve: Curve
    servers: int
    extra_s: float = 0.0
    """Added to every TTFT: the network's."""

    @cached_property
    def mass(self) -> float:
        """The part of all requests that this is."""
        within = float(self.law.partial(0, self.high)) - float(self.law.partial(0, self.low))
        return self.share * max(0.0, within)

    @cached_property
    def mean_s(self) -> float:
        """E[T_prefill] over the stream, which must not be empty."""
        return self._mean_of(lengths.partial_mean)

    @cached_property
    def mean_square(self) -> float:
        """E[T_prefill^2] over the stream, s^2."""
        return self._mean_of(lengths.partial_square)

    def _mean_of(self, partial: Callable[[LengthLaw, Curve, float], Floats]) -> float:
        whole = partial(self.law, self.curve, self.high) - partial(self.law, self.curve, self.low)
        return self.share * float(whole) / self.mass

    def waiting(self, rate: float, arrival_cv2: float) -> Wait:
        """The wait for an instance when all streams together arrive at `rate`."""
        if self.mass <= 0:
            return NO_WAIT
        return wait(
            rate=rate * self.mass,
            servers=self.servers,
            service_s=self.mean_s,
            service_square=self.mean_square,
            arrival_cv2=arrival_cv2,
        )

    def mass_within(self, limit_s: float, waiting: Wait) -> float:
        """The part of all requests that is in this stream and has its first token within the limit."""
        left_s = limit_s - self.extra_s
        if waiting.chance == 0 or waiting.mean_if_waiting_s == 0:
            reach = min(self.high, self.curve.inverse(left_s))
            within = float(self.law.partial(0, reach)) - float(self.law.partial(0, self.low))
            return self.share * max(0.0, within)
        if math.isinf(waiting.mean_if_waiting_s):
            return 0.0
        mass, prefill_s = self._bins
        slack_s = left_s - prefill_s
        late = waiting.chance * np.exp(-np.maximum(slack_s, 0.0) / waiting.mean_if_waiting_s)
        return self.share * float(np.sum(mass * np.where(slack_s >= 0, 1 - late, 0.0)))

    @cached_property
    def _bins(self) -> tuple[Floats, Floats]:
        """Thin slices of the stream: their masses, and the prefill seconds amid each."""
        bottom = max(self.low, self.law.support[0] - 1, 0.5)
        top = max(min(self.high, self.law.support[1]), bottom + 1e-9)
        edges = np.geomspace(bottom, top, _BINS + 1)
        edges[0], edges[-1] = self.low, self.high
        mass = np.diff(self.law.partial(0, edges))
        total = np.diff(self.law.partial(1, edges))
        amid = np.divide(total, mass, out=np.full_like(mass, top), where=mass > 1e-15)
        return mass, self.curve.many(amid)


def mean_s(streams: Sequence[Stream], waits: Sequence[Wait]) -> float:
    """E[TTFT]."""
    parts = [
        stream.mass * (stream.mean_s + stream.extra_s + waiting.mean_s)
        for stream, waiting in zip(streams, waits, strict=True)
        if stream.mass > 0
    ]
    return sum(parts) / sum(stream.mass for stream in streams)


def share_within(streams: Sequence[Stream], waits: Sequence[Wait], limit_s: float) -> float:
    """P(TTFT <= limit)."""
    within = sum(s.mass_within(limit_s, w) for s, w in zip(streams, waits, strict=True))
    return within / sum(stream.mass for stream in streams)


def percentile_s(streams: Sequence[Stream], waits: Sequence[Wait], share: float) -> float:
    """The TTFT that `share` of the requests do not exceed; inf when a queue is not stable."""
    high = 1.0
    while share_within(streams, waits, high) < share:
        high *= 2
        if high > 1e9:
            return math.inf
    low = 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if share_within(streams, waits, middle) >= share else (middle, high)
    return high
