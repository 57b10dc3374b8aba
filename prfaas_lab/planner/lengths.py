"""Exact integration over length distributions: no sampling, no quadrature.

Everything the equations need of a distribution is its partial moments E[L^k; L <= c]. From them
come P(L > t), conditional means, and the conditional mean of any piecewise-linear curve, segment by
segment, for many thresholds at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prfaas_lab.errors import LabError
from prfaas_lab.model.profile import Curve, Floats
from prfaas_lab.spec.scenario import Empirical, Fixed, Lengths, LogNormal

_LEAST_MASS = 1e-9


class LengthLaw(Protocol):
    """A distribution of token counts, all at least 0."""

    @property
    def support(self) -> tuple[float, float]:
        """The shortest and the longest length there is."""

    def partial(self, power: int, cut: npt.ArrayLike) -> Floats:
        """E[L^power; L <= cut]: with power 0 the distribution function. `cut` may be inf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedLogNormal:
    """ln L ~ N(mu, sigma), conditioned on low <= L <= high; tokens taken as continuous."""

    mu: float
    sigma: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if self._mass <= _LEAST_MASS:
            raise LabError(
                f"a log-normal with mu {self.mu:g} and sigma {self.sigma:g} hardly ever falls within "
                f"[{self.low:g}, {self.high:g}]",
                remedy="move mu or widen the range",
            )

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    def partial(self, power: int, cut: npt.ArrayLike) -> Floats:
        bounded = np.clip(np.asarray(cut, dtype=np.float64), self.low, self.high)
        scale = math.exp(power * self.mu + (power * self.sigma) ** 2 / 2)
        # The moment weighting shifts the normal by power * sigma: the log-normal's closed form.
        shifted = (np.log(bounded) - self.mu) / self.sigma - power * self.sigma
        start = (math.log(self.low) - self.mu) / self.sigma - power * self.sigma
        return np.asarray(scale * _normal_between(start, shifted) / self._mass)

    @property
    def _mass(self) -> float:
        ends = [(math.log(x) - self.mu) / self.sigma for x in (self.low, self.high)]
        return float(_normal_between(ends[0], np.asarray(ends[1])))


@dataclass(frozen=True, slots=True, eq=False)
class Discrete:
    """Token counts with weights: fixed, empirical, or a trace. `tokens` rise, `weights` sum to 1."""

    tokens: Floats
    weights: Floats

    @classmethod
    def of(cls, tokens: Iterable[float], weights: Iterable[float] | None = None) -> Discrete:
        """From counts in any order, repeated or not. Raises LabError when there are none."""
        counts = np.fromiter(tokens, dtype=np.float64)
        if counts.size == 0 or counts.min() < 0:
            raise LabError("no lengths, or negative ones", remedy="give at least one length, none below 0")
        share = np.ones_like(counts) if weights is None else np.fromiter(weights, dtype=np.float64)
        values, index = np.unique(counts, return_inverse=True)
        mass = np.bincount(index, weights=share)
        return cls(values[mass > 0], mass[mass > 0] / mass.sum())

    @property
    def support(self) -> tuple[float, float]:
        return float(self.tokens[0]), float(self.tokens[-1])

    def partial(self, power: int, cut: npt.ArrayLike) -> Floats:
        sums = np.concatenate([[0.0], np.cumsum(self.weights * self.tokens**power)])
        return np.asarray(sums[np.searchsorted(self.tokens, np.asarray(cut), side="right")])


@dataclass(frozen=True, slots=True)
class Mixture:
    """Draws from one of several laws: `parts` are (share, law), the shares summing to 1."""

    parts: tuple[tuple[float, LengthLaw], ...]

    @property
    def support(self) -> tuple[float, float]:
        ends = [law.support for _, law in self.parts]
        return min(low for low, _ in ends), max(high for _, high in ends)

    def partial(self, power: int, cut: npt.ArrayLike) -> Floats:
        return np.asarray(sum(share * law.partial(power, cut) for share, law in self.parts))


def law_of(lengths: Lengths) -> LengthLaw:
    """The law of a scenario's `prompt:` or `output:`."""
    match lengths:
        case LogNormal():
            return TruncatedLogNormal(
                mu=lengths.mu, sigma=lengths.sigma, low=float(lengths.min), high=float(lengths.max)
            )
        case Fixed():
            return Discrete.of([lengths.tokens])
        case Empirical():
            return Discrete.of(lengths.tokens, lengths.weights)


def scaled(law: LengthLaw, factor: float) -> LengthLaw:
    """The law of factor * L, for 0 < factor."""
    match law:
        case TruncatedLogNormal():
            return TruncatedLogNormal(
                mu=law.mu + math.log(factor), sigma=law.sigma, low=law.low * factor, high=law.high * factor
            )
        case Discrete():
            return Discrete(law.tokens * factor, law.weights)
        case Mixture():
            return Mixture(tuple((share, scaled(part, factor)) for share, part in law.parts))
        case _:
            raise AssertionError(f"no rule to scale a {type(law).__name__}")


def thresholds(law: LengthLaw, *, digits: int = 3) -> Floats:
    """Every threshold to so many significant digits, as people write them (19.4K), between the cut that
    all lengths exceed and the one that none does, both included."""
    low, high = math.ceil(law.support[0]) - 1, math.ceil(law.support[1])
    first = 10 ** (digits - 1)
    decades = [np.arange(first, 10 * first) * 10**power for power in range(len(str(high)))]
    written = np.concatenate([np.arange(first), *decades])
    within = written[(written > low) & (written < high)]
    return np.concatenate([[low], within, [high]]).astype(np.float64)


def mean(law: LengthLaw) -> float:
    """E[L]."""
    return float(law.partial(1, math.inf))


def share_above(law: LengthLaw, threshold: npt.ArrayLike) -> Floats:
    """p = P(L > t)."""
    return np.asarray(np.clip(1.0 - law.partial(0, threshold), 0.0, 1.0))


def partial_mean(law: LengthLaw, curve: Curve, cut: npt.ArrayLike) -> Floats:
    """E[T(L); L <= cut] of a piecewise-linear T: a + b L over each of its segments."""
    return _by_segments(law, curve, cut, square=False)


def partial_square(law: LengthLaw, curve: Curve, cut: npt.ArrayLike) -> Floats:
    """E[T(L)^2; L <= cut], what a queue's variability needs."""
    return _by_segments(law, curve, cut, square=True)


def quantile(law: LengthLaw, share: float) -> float:
    """The least length that at least `share` of all lengths do not exceed."""
    low, high = law.support
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if float(law.partial(0, middle)) >= share else (middle, high)
    return high


def _by_segments(law: LengthLaw, curve: Curve, cut: npt.ArrayLike, *, square: bool) -> Floats:
    cuts = np.asarray(cut, dtype=np.float64)
    inner, lines = curve.segments()
    total = np.zeros_like(cuts)
    for left, right, (a, b) in zip((0.0, *inner), (*inner, math.inf), lines, strict=True):
        weights = (a * a, 2 * a * b, b * b) if square else (a, b)
        start, end = np.minimum(cuts, left), np.minimum(cuts, right)
        if left == 0.0:
            start = np.full_like(cuts, -1.0)  # a length of exactly 0 belongs to the first segment
        for power, weight in enumerate(weights):
            total = total + weight * (law.partial(power, end) - law.partial(power, start))
    return total


def _normal_between(start: float, end: Floats) -> Floats:
    """P(start < Z <= end) of a standard normal, from whichever tail keeps the digits."""
    from scipy.special import ndtr  # takes as long to load as all the rest: only when there is a plan to make

    if start > 0:
        return np.asarray(ndtr(-start) - ndtr(-end))
    return np.asarray(ndtr(end) - ndtr(start))
