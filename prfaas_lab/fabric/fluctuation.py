"""Bandwidth that varies in time: every kind that a scenario knows, as a path of (second, rate).

A path is a pure function of its spec and its generator. It begins at second 0 and names the rate
that holds from each time on; two times are at least `every_s` apart, and what changes faster is
averaged, so that a path always carries the bytes of what it stands for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

from prfaas_lab.fabric.traces import read_csv, read_mahimahi
from prfaas_lab.spec.scenario import (
    Bandwidth,
    CsvTrace,
    MahimahiTrace,
    Markov,
    OrnsteinUhlenbeck,
    Sine,
    Square,
    Steps,
)

Step = tuple[float, float]
"""(second, rate in bits per second from then on)."""


def rates(bandwidth: Bandwidth, *, every_s: float, random: Random, base_dir: Path) -> Iterator[Step]:
    """The path of a bandwidth, endless unless it comes to rest. Traces are read from `base_dir`, at
    once: raises FabricError, with file and line, before the first step is taken."""
    match bandwidth:
        case Sine():
            return _windows(every_s, partial(_sine_mean, bandwidth))
        case OrnsteinUhlenbeck():
            return _ornstein_uhlenbeck(bandwidth, every_s, random)
        case MahimahiTrace():
            return _windows(every_s, read_mahimahi(base_dir / bandwidth.file).mean_bps)
        case Square():
            return _no_faster(_square(bandwidth), every_s)
        case Steps():
            return _no_faster(_steps(bandwidth.steps, bandwidth.repeat), every_s)
        case Markov():
            return _no_faster(_markov(bandwidth, random), every_s)
        case CsvTrace():
            return _no_faster(_csv(read_csv(base_dir / bandwidth.file)), every_s)


def _windows(every_s: float, mean: Callable[[float, float], float]) -> Iterator[Step]:
    """The mean of each window, set at its start."""
    for i in itertools.count():
        yield i * every_s, mean(i * every_s, (i + 1) * every_s)


def _sine_mean(sine: Sine, start_s: float, end_s: float) -> float:
    a, b = (2 * math.pi * (at / sine.period + sine.phase) for at in (start_s, end_s))
    return max(0.0, sine.mean + sine.amplitude * (math.cos(a) - math.cos(b)) / (b - a))


def _ornstein_uhlenbeck(ou: OrnsteinUhlenbeck, every_s: float, random: Random) -> Iterator[Step]:
    """The exact transition over one period (not an Euler step), from a stationary start. The path is
    cut at floor and ceiling; what is beneath moves on uncut."""
    kept = math.exp(-every_s / ou.relaxation)
    fresh = ou.deviation * math.sqrt(1 - kept**2)
    ceiling = math.inf if ou.ceiling is None else ou.ceiling
    deviation = random.gauss(0, ou.deviation)
    for i in itertools.count():
        yield i * every_s, min(max(ou.mean + deviation, ou.floor, 0.0), ceiling)
        deviation = kept * deviation + random.gauss(0, fresh)


def _square(square: Square) -> Iterator[Step]:
    if square.duty in (0.0, 1.0):
        yield 0.0, square.high if square.duty else square.low
        return
    for i in itertools.count():
        yield i * square.period, square.high
        yield (i + square.duty) * square.period, square.low


def _steps(steps: tuple[Step, ...], repeat_s: float | None) -> Iterator[Step]:
    """As listed; the first rate holds from second 0, also in every repetition."""
    for i in itertools.count() if repeat_s else (0,):
        start_s = i * (repeat_s or 0.0)
        yield start_s, steps[0][1]
        for at_s, rate in steps[1:]:
            if repeat_s is None or at_s < repeat_s:
                yield start_s + at_s, rate


def _markov(markov: Markov, random: Random) -> Iterator[Step]:
    """A uniform start; each jump goes to one of the other states, uniformly."""
    at_s, state = 0.0, random.randrange(len(markov.states))
    while True:
        yield at_s, markov.states[state]
        at_s += random.expovariate(1 / markov.hold)
        state = (state + random.randrange(1, len(markov.states))) % len(markov.states)


def _csv(rows: tuple[Step, ...]) -> Iterator[Step]:
    """The last row holds as long as the one before it, then the file starts over."""
    if len(rows) == 1:
        return iter([(0.0, rows[0][1])])
    return _steps(rows, rows[-1][0] + (rows[-1][0] - rows[-2][0]))


def _no_faster(path: Iterator[Step], every_s: float) -> Iterator[Step]:
    """The same bytes with no two changes closer than `every_s`: what a rate that is held for less
    carries is spread over a window of that length."""
    start_s = bits = 0.0
    open_s = 0.0  # how much of a window is filled
    for at_s, rate, end_s in _spans(path):
        if open_s:
            filled_s = min(end_s, start_s + every_s) - at_s
            open_s, bits, at_s = open_s + filled_s, bits + rate * filled_s, at_s + filled_s
            # A hair's breadth of rounding must not leave a window open.
            if open_s < every_s * (1 - 1e-9):
                continue
            yield start_s, bits / open_s
        if end_s - at_s >= every_s * (1 - 1e-9):
            yield at_s, rate
            open_s = 0.0
        else:
            start_s, open_s, bits = at_s, end_s - at_s, rate * (end_s - at_s)


def _spans(path: Iterator[Step]) -> Iterator[tuple[float, float, float]]:
    """(start, rate, end) of each step; the last never ends."""
    at_s, rate = next(path)
    for next_s, next_rate in path:
        if next_s > at_s:
            yield at_s, rate, next_s
        at_s, rate = next_s, next_rate
    yield at_s, rate, math.inf
