"""Quantities: strict in files, plain numbers in Python, and exact as text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from prfaas_lab.spec.quantities import FROM_FILE, Duration, Fraction, Frequency, Rate, Size, Tokens
from prfaas_lab.spec.topology import Impairment, Link

TYPES = {"rate": Rate, "duration": Duration, "size": Size}
positive = st.floats(min_value=0, max_value=1e18, allow_subnormal=False)


def read(kind: Any, value: Any) -> Any:
    return TypeAdapter(kind).validate_python(value, context=FROM_FILE)


def written(kind: Any, value: Any) -> Any:
    return TypeAdapter(kind).dump_python(value, mode="json")


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize(
    "value", [1, 100, 1.5, 1e9, "100", "1.5", True, None, [1], -1, "", "x", float("nan")]
)
def test_a_bare_number_in_a_file_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(ValidationError):
        read(kind, value)


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_zero_cannot_be_mistaken(kind: Any) -> None:
    assert read(kind, 0) == 0


def test_in_python_a_number_is_in_the_base_unit() -> None:
    shaped = Impairment(rate=1e9, delay=0.025, queue=4096)
    assert (shaped.rate, shaped.delay, shaped.queue) == (1e9, 0.025, 4096)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_in_python_too_a_rate_is_finite_and_not_negative(value: float) -> None:
    with pytest.raises(ValidationError):
        Impairment(rate=value)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (Rate, 1e11, "100Gbit"),
        (Rate, 2.5e8, "250Mbit"),
        (Rate, 0.0, "0bit"),
        (Duration, 0.025, "25ms"),
        (Duration, 90.0, "90s"),
        (Duration, 0.0, "0s"),
        (Size, 64 * 2**20, "64MiB"),
        (Size, 10**7, "10MB"),
        (Size, 4097, "4097B"),
        (Frequency, 2.0, "2/s"),
        (Frequency, 0.5, "30/m"),
    ],
)
def test_a_quantity_is_written_as_people_write_it(kind: Any, value: float, text: str) -> None:
    assert written(kind, value) == text


@given(positive)
def test_a_rate_survives_being_written(value: float) -> None:
    assert read(Rate, written(Rate, value)) == value


@given(positive)
def test_a_duration_survives_being_written(value: float) -> None:
    assert read(Duration, written(Duration, value)) == value


@given(positive)
def test_a_frequency_survives_being_written(value: float) -> None:
    assert read(Frequency, written(Frequency, value)) == value


@given(st.integers(0, 2**50))
def test_a_size_survives_being_written(value: int) -> None:
    assert read(Size, written(Size, value)) == value


@given(st.integers(0, 2**40))
def test_a_token_count_survives_being_written(value: int) -> None:
    assert read(Tokens, written(Tokens, value)) == value


@given(st.floats(0, 1))
def test_a_fraction_survives_being_written(value: float) -> None:
    assert read(Fraction, written(Fraction, value)) == value


@given(
    st.integers(1, 10**6), st.sampled_from(["bit", "kbit", "Mbit", "Gbit"]),
    st.integers(1, 10**6), st.sampled_from(["ns", "us", "ms", "s", "m", "h"]),
)  # fmt: skip
def test_what_people_write_survives(rate: int, rate_unit: str, delay: int, delay_unit: str) -> None:
    link = {"between": ["a", "b"], "rate": f"{rate}{rate_unit}", "forward": {"delay": f"{delay}{delay_unit}"}}
    first = Link.model_validate(link, context=FROM_FILE)
    assert Link.model_validate(first.model_dump(mode="json"), context=FROM_FILE) == first


def test_an_explicit_null_is_written_and_an_absent_key_is_not() -> None:
    link = Link.model_validate({"between": ["a", "b"], "loss": "1%", "forward": {"loss": None}})
    again = Link.model_validate(link.model_dump(mode="json"))
    assert link.model_dump(mode="json")["forward"] == {"loss": None}
    assert (again.direction("a").loss, again.direction("b").loss) == (None, 0.01)
