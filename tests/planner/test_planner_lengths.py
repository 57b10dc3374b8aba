from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from prfaas_lab.errors import LabError
from prfaas_lab.model.profile import PrefillCurve, find_profile
from prfaas_lab.planner.lengths import (
    Discrete,
    LengthLaw,
    Mixture,
    TruncatedLogNormal,
    law_of,
    mean,
    partial_mean,
    partial_square,
    quantile,
    scaled,
    share_above,
    thresholds,
)
from prfaas_lab.spec.scenario import Empirical, Fixed

CASE = TruncatedLogNormal(mu=9.9, sigma=1.0, low=128, high=131072)
CURVE = find_profile("8xH20").prefill


@st.composite
def log_normals(draw: st.DrawFn) -> TruncatedLogNormal:
    mu, sigma = draw(st.floats(3, 11)), draw(st.floats(0.1, 2))
    low = math.exp(mu - sigma * draw(st.floats(0, 4)))
    high = math.exp(mu + sigma * draw(st.floats(0.1, 4)))
    return TruncatedLogNormal(mu=mu, sigma=sigma, low=low, high=high)


@st.composite
def discretes(draw: st.DrawFn) -> Discrete:
    tokens = draw(st.lists(st.integers(1, 10**5), min_size=1, max_size=30))
    return Discrete.of(tokens, [draw(st.floats(0.1, 5)) for _ in tokens])


laws = st.one_of(log_normals(), discretes())


def _by_quadrature(law: TruncatedLogNormal, of, high: float) -> float:
    """E[of(L); L <= high] over the normal's own variable."""
    start, end = ((math.log(x) - law.mu) / law.sigma for x in (law.low, min(max(high, law.low), law.high)))
    whole = (math.log(law.high) - law.mu) / law.sigma

    def density(z: float) -> float:
        return math.exp(-z * z / 2)

    kinks = [(math.log(x) - law.mu) / law.sigma for x in CURVE.inner_knots()]
    kinks = [z for z in kinks if start < z < end] or None
    part = quad(lambda z: of(math.exp(law.mu + law.sigma * z)) * density(z), start, end, points=kinks)[0]
    return part / quad(density, start, whole)[0]


@settings(max_examples=40)
@given(log_normals(), st.floats(0.01, 1.0))
def test_integration_agrees_with_quadrature(law: TruncatedLogNormal, where: float):
    cut = law.low + where * (law.high - law.low)
    assert float(law.partial(0, cut)) == pytest.approx(_by_quadrature(law, lambda _: 1.0, cut), rel=1e-6)
    assert float(law.partial(1, cut)) == pytest.approx(_by_quadrature(law, lambda x: x, cut), rel=1e-6)
    assert float(partial_mean(law, CURVE, cut)) == pytest.approx(_by_quadrature(law, CURVE.at, cut), rel=1e-6)
    square = _by_quadrature(law, lambda x: CURVE.at(x) ** 2, cut)
    assert float(partial_square(law, CURVE, cut)) == pytest.approx(square, rel=1e-6)


def test_integration_agrees_with_a_large_sample():
    drawn = np.exp(np.random.default_rng(7).normal(9.9, 1.0, 400_000))
    drawn = drawn[(drawn >= 128) & (drawn <= 131072)]
    long = drawn[drawn > 19_400]
    assert float(share_above(CASE, 19_400)) == pytest.approx(long.size / drawn.size, rel=0.01)
    exact = float(partial_mean(CASE, CURVE, math.inf) - partial_mean(CASE, CURVE, 19_400))
    assert exact / float(share_above(CASE, 19_400)) == pytest.approx(CURVE.many(long).mean(), rel=0.01)


@settings(max_examples=60)
@given(laws, st.floats(0, 1))
def test_the_parts_below_and_above_a_cut_make_the_whole(law: LengthLaw, where: float):
    low, high = law.support
    cut = low + where * (high - low)
    assert 0 <= float(share_above(law, cut)) <= 1
    assert float(law.partial(0, math.inf)) == pytest.approx(1)
    assert low <= mean(law) * (1 + 1e-9)
    assert mean(law) <= high * (1 + 1e-9)
    assert float(law.partial(1, cut)) <= mean(law) * (1 + 1e-9)


@settings(max_examples=60)
@given(laws)
def test_the_mean_of_a_convex_curve_is_at_least_the_curve_at_the_mean(law: LengthLaw):
    convex = PrefillCurve(source="a test", knots=((100, 1.0), (1000, 2.0), (10_000, 20.0), (50_000, 400.0)))
    assert float(partial_mean(law, convex, math.inf)) >= convex.at(mean(law)) * (1 - 1e-9)


@settings(max_examples=30)
@given(laws, st.floats(0.1, 1.0))
def test_a_scaled_law_is_the_law_of_scaled_lengths(law: LengthLaw, factor: float):
    shorter = scaled(law, factor)
    assert mean(shorter) == pytest.approx(factor * mean(law), rel=1e-6)
    middle = quantile(law, 0.5) * 1.0000001
    assert float(shorter.partial(0, middle * factor)) == pytest.approx(
        float(law.partial(0, middle)), abs=1e-3
    )


def test_discrete_laws_count_their_tokens_exactly():
    law = law_of(Empirical(kind="empirical", tokens=(100, 300, 200), weights=(1, 1, 2)))
    assert mean(law) == 200
    assert share_above(law, [99, 100, 250, 300]).tolist() == [1.0, 0.75, 0.25, 0.0]
    assert quantile(law, 0.75) == pytest.approx(200)
    assert float(partial_mean(law, CURVE, 200)) == pytest.approx(CURVE.at(100) / 4 + CURVE.at(200) / 2)
    assert mean(law_of(Fixed(kind="fixed", tokens=512))) == 512


def test_a_mixture_weighs_its_parts():
    law = Mixture(((0.25, Discrete.of([400])), (0.75, Discrete.of([0]))))
    assert mean(law) == 100
    assert float(partial_mean(law, CURVE, math.inf)) == pytest.approx(
        0.25 * CURVE.at(400) + 0.75 * CURVE.at(0)
    )


def test_thresholds_read_as_people_write_them():
    tried = thresholds(CASE)
    assert 19_400 in tried
    assert 19_450 not in tried
    assert (tried[0], tried[-1]) == (127, 131072)
    assert np.all(np.diff(tried) > 0)
    assert thresholds(Discrete.of([512])).tolist() == [511, 512]


def test_a_range_that_the_law_hardly_reaches_is_refused():
    with pytest.raises(LabError, match="hardly ever"):
        TruncatedLogNormal(mu=9.9, sigma=0.1, low=1, high=2)
    with pytest.raises(LabError, match="no lengths"):
        Discrete.of([])
