"""Token counts: bounded, faithful to their law, and in step under a change of parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import truncnorm

from prfaas_lab.planner.lengths import law_of
from prfaas_lab.spec.workload import Empirical, Fixed, LogNormal
from prfaas_lab.workload.lengths import lengths

PAPER = LogNormal(kind="lognormal", mu=9.9, sigma=1.0, min=128, max=131072)

shares = st.floats(0, 1, exclude_max=True)
reachable = st.builds(
    lambda middle, sigma, low, span: (math.log(middle), sigma, low, low + span),
    st.floats(10, 1e5), st.floats(0.2, 3), st.integers(1, 5000), st.integers(1, 10**6),
).filter(lambda p: math.log(p[2]) - 7 * p[1] < p[0] < math.log(p[3]) + 7 * p[1])  # fmt: skip


def law(parameters: tuple[float, float, int, int]) -> LogNormal:
    mu, sigma, low, high = parameters
    return LogNormal(kind="lognormal", mu=mu, sigma=sigma, min=low, max=high)


@given(reachable, shares)
def test_a_truncated_length_never_leaves_its_bounds(
    parameters: tuple[float, float, int, int], u: float
) -> None:
    spec = law(parameters)
    assert spec.min <= lengths(spec).quantile(u) <= spec.max


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
@pytest.mark.parametrize(
    "parameters",
    [
        (9.9, 1.0, 128, 131072),
        (3.0, 0.5, 300, 4000),
        (9.0, 0.4, 1, 600),
        (2.0, 0.1, 1, 2**30),
        (math.log(100), 0.1, 100, 2**30),
    ],
)
def test_the_ends_of_the_unit_interval_are_drawable(
    parameters: tuple[float, float, int, int], u: float
) -> None:
    spec = law(parameters)
    assert spec.min <= lengths(spec).quantile(u) <= spec.max


@given(reachable, shares, shares)
def test_a_higher_rank_is_never_a_shorter_prompt(
    parameters: tuple[float, float, int, int], u: float, v: float
) -> None:
    length = lengths(law(parameters))
    assert length.quantile(min(u, v)) <= length.quantile(max(u, v))


@given(reachable, st.floats(0.001, 0.999))
def test_cdf_undoes_quantile_to_within_a_token(parameters: tuple[float, float, int, int], u: float) -> None:
    length = lengths(law(parameters))
    tokens = length.quantile(u)
    assert length.cdf(tokens - 1) - 1e-9 <= u <= length.cdf(tokens + 1) + 1e-9


@given(reachable)
def test_cdf_agrees_with_scipy(parameters: tuple[float, float, int, int]) -> None:
    mu, sigma, low, high = parameters
    a, b = (math.log(low) - mu) / sigma, (math.log(high) - mu) / sigma
    for tokens in (low, math.sqrt(low * high), high):
        expected = truncnorm.cdf(math.log(tokens), a, b, loc=mu, scale=sigma)
        assert lengths(law(parameters)).cdf(tokens) == pytest.approx(expected, abs=1e-9)


def test_the_mean_of_the_papers_case_study() -> None:
    assert lengths(PAPER).mean() == pytest.approx(27_486, abs=1)


def test_drawn_lengths_have_the_mean_of_their_law() -> None:
    length, rng = lengths(PAPER), np.random.default_rng(1)
    drawn = [length.quantile(u) for u in rng.random(50_000)]
    assert np.mean(drawn) == pytest.approx(length.mean(), rel=0.015)


@pytest.mark.parametrize(
    "spec",
    [
        PAPER,
        Fixed(kind="fixed", tokens=100),
        Empirical(kind="empirical", tokens=(10, 500, 20), weights=(1.0, 2.0, 5.0)),
    ],
)
def test_the_planner_integrates_over_the_law_that_is_drawn_from(
    spec: LogNormal | Fixed | Empirical,
) -> None:
    drawn, planned = lengths(spec), law_of(spec)
    assert float(planned.partial(1, math.inf)) == pytest.approx(drawn.mean(), rel=1e-9)
    for threshold in (5, 20, 100, 19_400, 10**6):
        assert float(planned.partial(0, threshold)) == pytest.approx(drawn.cdf(threshold), abs=1e-12)


def test_a_fixed_length_is_always_the_same() -> None:
    length = lengths(Fixed(kind="fixed", tokens=77))
    assert {length.quantile(u) for u in (0.0, 0.5, 0.999999)} == {77}
    assert (length.mean(), length.cdf(76), length.cdf(77)) == (77, 0, 1)


def test_empirical_lengths_come_by_their_weights_and_never_by_none() -> None:
    length = lengths(Empirical(kind="empirical", tokens=(30, 10, 20), weights=(2.0, 2.0, 0.0)))
    drawn = [length.quantile(u) for u in np.linspace(0, 1, 1000, endpoint=False)]
    assert (drawn.count(10), drawn.count(20), drawn.count(30)) == (500, 0, 500)
    assert length.mean() == 20
    assert length.cdf(15) == 0.5
