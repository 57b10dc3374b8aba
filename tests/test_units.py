"""Units: every spelling that people use, and a remedy for every one that we do not take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab import units
from prfaas_lab.errors import LabError, SpecError, UnitError


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_rate, "100Gbit", 1e11),
        (units.parse_rate, "100 Gbps", 1e11),
        (units.parse_rate, "100gbit", 1e11),
        (units.parse_rate, "1.5Mbit", 1.5e6),
        (units.parse_rate, "0bit", 0),
        (units.parse_rate, " 8e3kbit ", 8e6),
        (units.parse_duration, "25ms", 0.025),
        (units.parse_duration, "1.5s", 1.5),
        (units.parse_duration, "2m", 120),
        (units.parse_duration, "3µs", 3e-6),
        (units.parse_duration, "1h", 3600),
        (units.parse_size, "64MiB", 64 * 2**20),
        (units.parse_size, "10MB", 10**7),
        (units.parse_size, "512B", 512),
        (units.parse_tokens, 512, 512),
        (units.parse_tokens, "19.4K", 19_400),
        (units.parse_tokens, "128Ki", 131_072),
        (units.parse_fraction, "0.1%", 0.001),
        (units.parse_fraction, 1, 1),
        (units.parse_frequency, "2/s", 2),
        (units.parse_frequency, "30/m", 0.5),
        (units.parse_frequency, 3, 3),
    ],
)
def test_a_quantity_reads_as_people_mean_it(parse: Callable[[Any], float], text: Any, value: float) -> None:
    assert parse(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("parse", "value", "what"),
    [
        (units.parse_rate, "100", "has no unit"),
        (units.parse_rate, "25ms", "is no rate"),
        (units.parse_rate, "100MB", "is no rate"),
        (units.parse_rate, "-1Mbit", "is negative"),
        (units.parse_rate, "1e400bit", "is not finite"),
        (units.parse_rate, "fast", "is not a rate"),
        (units.parse_rate, None, "is not a rate"),
        (units.parse_rate, True, "is not a rate"),
        (units.parse_duration, "25MS", "is no duration"),
        (units.parse_size, "64Mbit", "is no size"),
        (units.parse_size, "1mb", "is no size"),
        (units.parse_tokens, "1.5", "is not a whole number"),
        (units.parse_tokens, "12B", "is no token count"),
        (units.parse_fraction, "250%", "more than the whole"),
        (units.parse_fraction, 1.01, "more than the whole"),
        (units.parse_frequency, "2s", "is no frequency"),
        (units.parse_rate, "9" * 500 + "x", "..."),
    ],
)
def test_anything_else_is_refused_with_a_remedy(parse: Callable[[Any], float], value: Any, what: str) -> None:
    with pytest.raises(UnitError, match=r"\(write .*\)$") as caught:
        parse(value)
    assert what in str(caught.value)
    assert len(str(caught.value)) < 150


@given(st.floats(1, 1e14))
def test_a_shown_rate_reads_back_to_four_digits(rate_bps: float) -> None:
    assert units.parse_rate(units.format_rate(rate_bps)) == pytest.approx(rate_bps, rel=1e-3)


@given(st.floats(1, 1e14))
def test_a_shown_size_reads_back_to_four_digits(size_bytes: float) -> None:
    assert units.parse_size(units.format_size(size_bytes)) == pytest.approx(size_bytes, rel=1e-3, abs=1)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (units.format_rate(1e11), "100Gbit"),
        (units.format_rate(999_960), "1Mbit"),
        (units.format_rate(0), "0bit"),
        (units.format_size(64 * 2**20), "64MiB"),
        (units.format_size(1536), "1.5KiB"),
        (units.format_duration(0.025), "25ms"),
        (units.format_duration(125), "2m05s"),
        (units.format_duration(0.0008), "800us"),
        (units.format_duration(0), "0s"),
        (units.format_duration(7.3e-18), "0s"),
        (units.format_duration(1.5), "1.5s"),
    ],
)
def test_a_quantity_is_shown_as_people_write_it(shown: str, text: str) -> None:
    assert shown == text


def test_an_error_says_where_what_and_the_remedy() -> None:
    error = LabError("is down", where="links.wan", remedy="bring it up")
    assert str(error) == "links.wan: is down (bring it up)"
    assert str(LabError("is down")) == "is down"


def test_the_files_faults_end_with_two_and_all_others_with_one() -> None:
    assert (LabError("x").exit_code, SpecError(["x"]).exit_code, UnitError("x").exit_code) == (1, 2, 2)


def test_a_spec_error_shows_every_problem() -> None:
    error = SpecError(["a:1: one", "a:2: two"])
    assert error.problems == ("a:1: one", "a:2: two")
    assert str(error) == "a:1: one\na:2: two"


def test_a_unit_error_is_a_value_error_so_that_pydantic_places_it() -> None:
    assert issubclass(UnitError, ValueError)
