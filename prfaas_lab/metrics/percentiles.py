"""Means and percentiles, exact from values or near enough from a sketch of fixed size."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

RELATIVE_ERROR = 0.005
"""A sketch's percentile lies within this share of a true value."""

_LOG_BASE = math.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))
_SMALLEST = 1e-9
_WAITING = 1_000
"""Values wait to be counted in a sketch until they are so many: together they cost a third."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What is said of a set of values. All None when there were none."""

    mean: float | None = None
    median: float | None = None
    std: float | None = None
    p90: float | None = None
    p99: float | None = None


def percentile(ordered: Sequence[float], q: float) -> float:
    """The q-th percentile (0..100) of sorted values, linear between neighbours (numpy's default)."""
    position = (len(ordered) - 1) * q / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def statistics_of(values: Iterable[float]) -> Statistics:
    """Exact statistics; `std` is that of the population, as numpy's and vLLM's."""
    ordered = sorted(values)
    if not ordered:
        return Statistics()
    mean = math.fsum(ordered) / len(ordered)
    return Statistics(
        mean=mean,
        median=percentile(ordered, 50),
        std=math.sqrt(math.fsum((value - mean) ** 2 for value in ordered) / len(ordered)),
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
    )


class Sketch:
    """Counts of values in logarithmic buckets (the idea of DDSketch): of fixed size, mergeable,
    mean and deviation exact, percentiles within RELATIVE_ERROR. For values that are not negative."""

    def __init__(self) -> None:
        self.count = 0
        self._buckets: Counter[int] = Counter()
        self._sum = self._squares = 0.0
        self._low, self._high = math.inf, -math.inf

    def add(self, value: float) -> None:
        self.count += 1
        self._sum += value
        self._squares += value * value
        self._low, self._high = min(self._low, value), max(self._high, value)
        self._buckets[math.ceil(math.log(max(value, _SMALLEST)) / _LOG_BASE)] += 1

    def extend(self, values: array[float]) -> None:
        """Count them; the same as one by one, to the last digit."""
        if not values:
            return
        import numpy as np  # few runs are so long that they need it

        several = np.asarray(values, np.float64)
        self.count += len(several)
        # numpy's sum() would add them in pairs.
        self._sum = float(np.add.accumulate(np.concatenate(([self._sum], several)))[-1])
        self._squares = float(np.add.accumulate(np.concatenate(([self._squares], several**2)))[-1])
        self._low, self._high = min(self._low, float(several.min())), max(self._high, float(several.max()))
        buckets = np.ceil(np.log(np.maximum(several, _SMALLEST)) / _LOG_BASE).astype(int)
        self._buckets.update(buckets.tolist())

    def merge(self, other: Sketch) -> None:
        """Count the other's values too."""
        self.count += other.count
        self._sum += other._sum
        self._squares += other._squares
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)
        self._buckets.update(other._buckets)

    def percentile(self, q: float) -> float | None:
        """As of the values themselves: linear between neighbours. None when nothing was counted."""
        position, seen = (self.count - 1) * q / 100, 0
        rank, below = math.floor(position), None
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if below is None and seen > rank:
                below = self._inside(bucket)
            if below is not None and seen > rank + 1:
                return below + (self._inside(bucket) - below) * (position - rank)
        return below

    def statistics(self) -> Statistics:
        if not self.count:
            return Statistics()
        mean = self._sum / self.count
        return Statistics(
            mean=mean,
            median=self.percentile(50),
            std=math.sqrt(max(0.0, self._squares / self.count - mean * mean)),
            p90=self.percentile(90),
            p99=self.percentile(99),
        )

    def _inside(self, bucket: int) -> float:
        middle = math.exp((bucket - 0.5) * _LOG_BASE)
        if middle <= _SMALLEST:
            return self._low
        return min(max(middle, self._low), self._high)


class Samples:
    """Values kept exactly while they are few, and as a sketch beyond `limit`. `typecode` is that of an
    array: `f` takes four bytes a value, `d` eight and loses nothing."""

    def __init__(self, limit: int = 1_000_000, typecode: Literal["f", "d"] = "f") -> None:
        self._room = limit
        self._exact = array(typecode)
        """All values, or those that the sketch does not count yet."""
        self._sketch: Sketch | None = None

    def __len__(self) -> int:
        return len(self._exact) + (self._sketch.count if self._sketch else 0)

    def add(self, value: float) -> None:
        self._exact.append(value)
        if len(self._exact) > self._room:
            self._condense()

    def extend(self, values: Iterable[float]) -> None:
        self._exact.extend(values)
        if len(self._exact) > self._room:
            self._condense()

    def statistics(self) -> Statistics:
        if self._sketch is None:
            return statistics_of(self._exact)
        self._condense()
        return self._sketch.statistics()

    def _condense(self) -> None:
        """Count in the sketch what there is, and from now on what comes, some at a time."""
        if self._sketch is None:
            self._sketch = Sketch()
        self._sketch.extend(self._exact)
        self._exact = array("d")
        self._room = min(self._room, _WAITING)
