"""The two classes of requests that a threshold makes, and what each costs: the inputs of equations 3-6."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prfaas_lab.model.profile import Curve, Floats
from prfaas_lab.planner import lengths
from prfaas_lab.planner.lengths import LengthLaw
from prfaas_lab.planner.setting import Mode

EMPTY = 1e-12
"""A class this rare is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """Long (L > t) and short requests for each of an array of thresholds.

    A mean over an empty class is nan; the rates that divide by its share take it as never binding.
    """

    law: LengthLaw
    mode: Mode
    thresholds: Floats

    @property
    def p(self) -> Floats:
        """P(L > t)."""
        return lengths.share_above(self.law, self.thresholds)

    @property
    def l_long(self) -> Floats:
        """E[L | L > t]."""
        above = lengths.mean(self.law) - self.law.partial(1, self.thresholds)
        return np.clip(_over(above, self.p), self.thresholds, self.law.support[1])

    @property
    def l_short(self) -> Floats:
        """E[L | L <= t]."""
        return _over(self.law.partial(1, self.thresholds), 1 - self.p)

    def long_mean(self, curve: Curve) -> Floats:
        """What `curve` counts for among the long: at their mean length (paper), or its mean (exact)."""
        if self.mode == "paper":
            return curve.many(self.l_long)
        whole = lengths.partial_mean(self.law, curve, math.inf)
        return _over(whole - lengths.partial_mean(self.law, curve, self.thresholds), self.p)

    def short_mean(self, curve: Curve) -> Floats:
        """The same among the short."""
        if self.mode == "paper":
            return curve.many(self.l_short)
        return _over(lengths.partial_mean(self.law, curve, self.thresholds), 1 - self.p)


def all_long(law: LengthLaw, mode: Mode) -> Classes:
    """Every request in the long class, as in the length-blind policies."""
    return Classes(law, mode, np.asarray([law.support[0] - 1.0]))


def _over(part: Floats, share: Floats) -> Floats:
    result = np.full(np.shape(part), np.nan)
    np.divide(part, share, out=result, where=share > EMPTY)
    return result
