"""Arrivals: the laws they claim, and exact windows."""

from __future__ import annotations

import math
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gamma, kstest

from prfaas_lab.spec.workload import Arrivals, ClosedLoop, Gamma, OnOff, Poisson, Uniform
from prfaas_lab.workload.arrivals import arrivals, mean_rate


def times(spec: Arrivals, count: int, seed: int = 1) -> list[float]:
    found = list(islice(arrivals(spec, np.random.default_rng(seed)), count))
    return [time for time in found if time is not None]


def gaps(of: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise([0.0, *of])]


def test_poisson_gaps_are_exponential() -> None:
    found = gaps(times(Poisson(kind="poisson", rate=3.0), 5000))
    assert kstest(found, "expon", args=(0, 1 / 3)).pvalue > 0.05


def test_burstiness_one_is_poisson_to_the_last_digit() -> None:
    plain = times(Poisson(kind="poisson", rate=3.0), 100)
    assert plain == times(Gamma(kind="gamma", rate=3.0, burstiness=1.0), 100)


@pytest.mark.parametrize("burstiness", [0.2, 0.5, 1.0, 4.0])
def test_gamma_gaps_have_vllms_shape_and_scale(burstiness: float) -> None:
    found = gaps(times(Gamma(kind="gamma", rate=5.0, burstiness=burstiness), 5000))
    assert kstest(found, gamma(burstiness, scale=1 / (5.0 * burstiness)).cdf).pvalue > 0.05
    assert not kstest(found, gamma(burstiness * 1.3, scale=1 / (5.0 * burstiness)).cdf).pvalue > 0.05


def test_less_burstiness_means_burstier() -> None:
    def variation(burstiness: float) -> float:
        found = gaps(times(Gamma(kind="gamma", rate=1.0, burstiness=burstiness), 5000))
        return float(np.std(found) / np.mean(found))

    assert variation(0.25) == pytest.approx(2.0, rel=0.1)
    assert variation(4.0) == pytest.approx(0.5, rel=0.1)


def test_uniform_arrivals_are_evenly_spaced_from_the_start() -> None:
    assert times(Uniform(kind="uniform", rate=4.0), 4) == [0.0, 0.25, 0.5, 0.75]


def test_a_closed_loop_leaves_the_time_to_its_driver() -> None:
    spec = ClosedLoop(kind="closed", clients=3)
    assert list(islice(arrivals(spec, np.random.default_rng(1)), 3)) == [None, None, None]
    assert mean_rate(spec) == math.inf


on_off = st.builds(
    OnOff,
    kind=st.just("onoff"),
    rate=st.floats(0.5, 50),
    on=st.floats(0.1, 20),
    off=st.floats(0.1, 20),
    off_rate=st.one_of(st.just(0.0), st.floats(0.01, 5)),
    burstiness=st.floats(0.2, 5),
)


@given(on_off, st.integers(0, 1000))
def test_arrivals_come_in_order(spec: OnOff, seed: int) -> None:
    found = times(spec, 50, seed)
    assert all(earlier <= later for earlier, later in pairwise(found))
    assert found[0] >= 0


@given(on_off, st.integers(0, 1000))
def test_nothing_arrives_between_bursts_when_their_rate_is_zero(spec: OnOff, seed: int) -> None:
    quiet = spec.model_copy(update={"off_rate": 0.0})
    period = spec.on + spec.off
    for time in times(quiet, 50, seed):
        into = time - math.floor(time / period) * period
        assert into <= spec.on + 1e-9 or into >= period - 1e-9  # the end of a period is the next one's start


@given(on_off, st.integers(0, 1000))
@settings(max_examples=50)
def test_equal_rates_make_windows_vanish(spec: OnOff, seed: int) -> None:
    """The proof that a switch in mid-gap is exact: when there is nothing to switch, nothing shows."""
    level = spec.model_copy(update={"off_rate": spec.rate})
    plain = Gamma(kind="gamma", rate=spec.rate, burstiness=spec.burstiness)
    assert times(level, 50, seed) == pytest.approx(times(plain, 50, seed))


def test_each_window_gets_its_own_rate() -> None:
    spec = OnOff(kind="onoff", rate=20.0, on=3.0, off=7.0, off_rate=2.0)
    found = np.array(times(spec, 40_000))
    periods, within = found[-1] / 10, found % 10
    assert np.sum(within < 3) / (periods * 3) == pytest.approx(20.0, rel=0.03)
    assert np.sum(within >= 3) / (periods * 7) == pytest.approx(2.0, rel=0.03)


def test_poisson_within_a_window_does_not_know_where_the_window_began() -> None:
    """A rejected or truncated gap at the switch would thin or crowd the window's edges."""
    spec = OnOff(kind="onoff", rate=4.0, on=1.0, off=1.0, off_rate=0.5)
    within = np.array(times(spec, 20_000)) % 2
    assert kstest(within[within < 1], "uniform").pvalue > 0.05
    assert kstest(within[within >= 1] - 1, "uniform").pvalue > 0.05


@pytest.mark.parametrize(
    "spec",
    [
        Poisson(kind="poisson", rate=7.0),
        Gamma(kind="gamma", rate=7.0, burstiness=0.5),
        Uniform(kind="uniform", rate=7.0),
        OnOff(kind="onoff", rate=9.0, on=2.0, off=3.0, off_rate=1.0, burstiness=0.7),
    ],
    ids=lambda spec: spec.kind,
)
def test_the_mean_rate_is_what_arrives_in_the_long_run(spec: Arrivals) -> None:
    found = times(spec, 20_000)
    assert len(found) / found[-1] == pytest.approx(mean_rate(spec), rel=0.03)
