"""When requests arrive: endless iterators of seconds since the workload's start.

The random processes are renewal processes in *operational* time, where one arrival is expected per
unit; each then maps operational time to real time by its rate. So a rate that switches in the middle
of a gap stretches only the rest of that gap, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prfaas_lab.spec.scenario import Arrivals, ClosedLoop, Gamma, OnOff, Poisson, TraceFile, Uniform

if TYPE_CHECKING:
    import numpy as np

_DRAWN = 256
"""Gaps drawn at once."""


def arrivals(spec: Arrivals, rng: np.random.Generator) -> Iterator[float | None]:
    """Arrival times in order, without end; None for each request of a closed loop."""
    match spec:
        case Poisson(rate=rate):
            return _steady(rate, 1.0, rng)
        case Gamma(rate=rate, burstiness=burstiness):
            return _steady(rate, burstiness, rng)
        case OnOff():
            return _on_off(spec, rng)
        case Uniform(rate=rate):
            return _even(rate)
        case ClosedLoop():
            return _when_a_client_is_free()
        case TraceFile():
            raise AssertionError("a trace's arrivals come with its requests: see generate")


def _operational(burstiness: float, rng: np.random.Generator) -> Iterator[float]:
    """Arrivals at a mean rate of one, with gamma gaps of shape `burstiness` (1 is Poisson)."""
    now = 0.0
    while True:
        for gap in rng.gamma(burstiness, 1.0 / burstiness, _DRAWN).tolist():
            now += gap
            yield now


def _steady(rate: float, burstiness: float, rng: np.random.Generator) -> Iterator[float]:
    return (arrival / rate for arrival in _operational(burstiness, rng))


def _on_off(spec: OnOff, rng: np.random.Generator) -> Iterator[float]:
    on, off = spec.on * spec.rate, spec.off * spec.off_rate  # arrivals expected in each window
    for arrival in _operational(spec.burstiness, rng):
        cycle, within = divmod(arrival, on + off)
        start_s = cycle * (spec.on + spec.off)
        if within <= on:
            yield start_s + min(within / spec.rate, spec.on)
        else:
            yield start_s + spec.on + min((within - on) / spec.off_rate, spec.off)


def _even(rate: float) -> Iterator[float]:
    number = 0
    while True:
        yield number / rate
        number += 1


def _when_a_client_is_free() -> Iterator[None]:
    while True:
        yield None


def mean_rate(spec: Arrivals) -> float:
    """Arrivals per second in the long run; infinite for a closed loop, which the system paces."""
    match spec:
        case OnOff():
            return (spec.on * spec.rate + spec.off * spec.off_rate) / (spec.on + spec.off)
        case ClosedLoop():
            return math.inf
        case TraceFile():
            raise AssertionError("nobody has read the trace")
        case Poisson() | Gamma() | Uniform():
            return spec.rate
