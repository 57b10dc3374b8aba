from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.metrics.percentiles import (
    RELATIVE_ERROR,
    Samples,
    Sketch,
    Statistics,
    percentile,
    statistics_of,
)

VALUES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200)


@given(VALUES, st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], q: float) -> None:
    assert percentile(sorted(values), q) == pytest.approx(np.percentile(values, q), rel=1e-9)


@given(VALUES)
def test_mean_and_deviation_are_numpys(values: list[float]) -> None:
    statistics = statistics_of(values)
    assert statistics.mean == pytest.approx(np.mean(values))
    assert statistics.std == pytest.approx(np.std(values), abs=1e-6 * max(values))


def test_of_nothing_nothing_is_said() -> None:
    assert statistics_of([]) == Sketch().statistics() == Samples().statistics() == Statistics()


@given(VALUES, st.sampled_from([0, 50, 90, 99, 100]))
def test_a_sketch_says_what_the_values_themselves_would(values: list[float], q: float) -> None:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    said = sketch.percentile(q)
    assert said == pytest.approx(percentile(sorted(values), q), rel=2.1 * RELATIVE_ERROR)


@given(VALUES, VALUES)
def test_merging_sketches_is_counting_both(left: list[float], right: list[float]) -> None:
    one, other, both = Sketch(), Sketch(), Sketch()
    for value in left:
        one.add(value)
        both.add(value)
    for value in right:
        other.add(value)
        both.add(value)
    one.merge(other)
    assert one.count == both.count
    assert one.percentile(90) == both.percentile(90)
    assert one.statistics().mean == pytest.approx(both.statistics().mean)


@given(VALUES, VALUES)
def test_a_sketch_of_many_at_once_is_that_of_each(first: list[float], then: list[float]) -> None:
    one, many = Sketch(), Sketch()
    for values in (first, then):
        for value in values:
            one.add(value)
        many.extend(array("d", values))
    assert vars(one) == vars(many)


def test_a_sketch_takes_zeros() -> None:
    sketch = Sketch()
    for value in (0.0, 0.0, 5.0):
        sketch.add(value)
    assert sketch.percentile(50) == 0.0
    assert sketch.percentile(100) == pytest.approx(5.0, rel=RELATIVE_ERROR)


@given(st.lists(st.floats(1, 1e3, width=32), min_size=20, max_size=60))
def test_samples_beyond_their_limit_stay_near_the_exact_ones(values: list[float]) -> None:
    exact, bounded = Samples(), Samples(limit=10)
    for value in values:
        exact.extend([value])
        bounded.extend([value])
    assert len(exact) == len(bounded) == len(values)
    assert bounded.statistics().mean == pytest.approx(exact.statistics().mean)
    assert len(bounded._exact) == 0
