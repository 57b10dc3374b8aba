"""How many tokens: distributions to draw from (`planner.lengths` integrates over the same laws).

Each draws by inverting its distribution function at one uniform number, so that changing a
parameter keeps every request's rank: a long prompt stays a long one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate
from statistics import NormalDist
from typing import Protocol

from prfaas_lab.spec.scenario import Empirical, Fixed, Lengths, LogNormal


class LengthDistribution(Protocol):
    """A law of token counts L."""

    def quantile(self, u: float) -> int:
        """The L with P(L' <= L) >= u, for u in [0, 1): the draw that u stands for."""

    def cdf(self, tokens: float) -> float:
        """P(L <= tokens)."""

    def mean(self) -> float:
        """E[L]."""


def lengths(spec: Lengths) -> LengthDistribution:
    """The distribution that a spec describes."""
    match spec:
        case LogNormal():
            return TruncatedLogNormal(spec.mu, spec.sigma, spec.min, spec.max)
        case Fixed(tokens=tokens):
            return Discrete((tokens,), (1.0,))
        case Empirical(tokens=tokens, weights=weights):
            return Discrete(tokens, weights or (1.0,) * len(tokens))


class TruncatedLogNormal:
    """Log-normal, redrawn until it falls within [low, high] (the paper, 4.1).

    `cdf` and `mean` are those of the continuous law; draws are rounded to whole tokens, which
    moves the mean by less than half a token.
    """

    def __init__(self, mu: float, sigma: float, low: int, high: int) -> None:
        self._mu, self._sigma, self._low, self._high = mu, sigma, low, high
        self._mass = self._between(low, high, 0.0)
        self._ends = self._z(low), self._z(high)
        self._mirrored = self._ends[0] > 0
        """The upper tail: reckoned in its mirror image, where no digits are lost."""
        self._first = _ndtr(-self._ends[0] if self._mirrored else self._ends[0])

    def quantile(self, u: float) -> int:
        below, above = self._ends
        mass = u * self._mass
        z = -_ndtri(self._first - mass) if self._mirrored else _ndtri(self._first + mass)
        z = min(max(z, below), above)  # rounding may reach past a far end
        return min(max(round(math.exp(self._mu + self._sigma * z)), self._low), self._high)

    def cdf(self, tokens: float) -> float:
        return self._between(self._low, min(max(tokens, self._low), self._high), 0.0) / self._mass

    def mean(self) -> float:
        # E[X; a < X <= b] = exp(mu + sigma^2/2) (Phi(z_b - sigma) - Phi(z_a - sigma))
        tilt = math.exp(self._mu + self._sigma**2 / 2)
        return tilt * self._between(self._low, self._high, self._sigma) / self._mass

    def _z(self, tokens: float) -> float:
        return (math.log(tokens) - self._mu) / self._sigma

    def _between(self, low: float, high: float, shift: float) -> float:
        a, b = self._z(low) - shift, self._z(high) - shift
        return _ndtr(-a) - _ndtr(-b) if a > 0 else _ndtr(b) - _ndtr(a)


class Discrete:
    """Given token counts with given weights."""

    def __init__(self, tokens: tuple[int, ...], weights: tuple[float, ...]) -> None:
        total = math.fsum(weights)
        pairs = sorted(
            (count, weight / total) for count, weight in zip(tokens, weights, strict=True) if weight
        )
        self._tokens = [count for count, _ in pairs]
        self._shares = [share for _, share in pairs]
        self._below = list(accumulate(self._shares))

    def quantile(self, u: float) -> int:
        return self._tokens[min(bisect_right(self._below, u), len(self._tokens) - 1)]

    def cdf(self, tokens: float) -> float:
        return math.fsum(self._shares[: bisect_right(self._tokens, tokens)])

    def mean(self) -> float:
        return math.fsum(count * share for count, share in zip(self._tokens, self._shares, strict=True))


_inverse = NormalDist().inv_cdf


def _ndtr(z: float) -> float:
    """P(Z <= z) of a standard normal."""
    return 0.5 * math.erfc(-z * math.sqrt(0.5))


def _ndtri(p: float) -> float:
    """The z with P(Z <= z) = p; infinite beyond what a float tells from 0 and 1."""
    if 0.0 < p < 1.0:
        return _inverse(p)
    return -math.inf if p <= 0.0 else math.inf
