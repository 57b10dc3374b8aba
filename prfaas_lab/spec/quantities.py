"""Quantities as pydantic types: text with a unit in a file, a plain number in the model.

In a file (validation context `FROM_FILE`) a bare number is refused where its unit could be mistaken;
in Python a number is in the base unit that the type names. In JSON mode each serialises to text that
reads back as exactly the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, Strict, ValidationInfo, WithJsonSchema

from prfaas_lab import units

FROM_FILE = {"from_file": True}
"""Validation context of values that a person wrote."""

_NUMBER = r"^\s*\+?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*"
_RATE_UNIT = "(?:[kKmMgGtT]?(?:[bB][iI][tT]|[bB][pP][sS]))"


def _parse_rate(value: Any, info: ValidationInfo) -> float:
    """Bits per second; a bare number only from Python, or 0 (an outage)."""
    return _number_in_base_unit(value) if _unit_is_known(value, info) else units.parse_rate(value)


def _parse_duration(value: Any, info: ValidationInfo) -> float:
    return _number_in_base_unit(value) if _unit_is_known(value, info) else units.parse_duration(value)


def _parse_size(value: Any, info: ValidationInfo) -> int:
    return int(_number_in_base_unit(value)) if _unit_is_known(value, info) else units.parse_size(value)


def _unit_is_known(value: Any, info: ValidationInfo) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == 0 or not (info.context or {}).get("from_file", False)


def _number_in_base_unit(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{value!r} is negative or not finite")
    return float(value)


def exact_text(value: float, scale: Mapping[str, float], parse: Callable[[str], float]) -> str:
    """The shortest `<number><unit>` that `parse` reads back as exactly `value`.

    `scale` maps units to their size, the base unit (1) among them, in which `repr` is always exact.
    """
    texts = [f"{_short(value / size)}{unit}" for unit, size in scale.items()]
    exact = [text for text in texts if parse(text) == value]
    return min(exact, key=len)


def _short(number: float) -> str:
    if number == int(number) and abs(number) < 1e15:
        return str(int(number))
    return repr(number)


_RATES = {"bit": 1.0, "kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9, "Tbit": 1e12}
_DURATIONS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0, "h": 3600.0}
_SIZES = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}
_FREQUENCIES = {"/s": 1.0, "/m": 1 / 60, "/h": 1 / 3600}


def rate_text(rate_bps: float) -> str:
    """`100Gbit`, exactly."""
    return exact_text(rate_bps, _RATES, units.parse_rate)


def duration_text(duration_s: float) -> str:
    """`25ms`, exactly."""
    return exact_text(duration_s, _DURATIONS, units.parse_duration)


def size_text(size_bytes: int) -> str:
    """`64MiB`, exactly."""
    return exact_text(size_bytes, _SIZES, units.parse_size)


def frequency_text(rate_hz: float) -> str:
    """`2/s`, exactly."""
    return exact_text(rate_hz, _FREQUENCIES, units.parse_frequency)


def _text(pattern: str, examples: list[str]) -> Any:
    """Text with a unit, or 0."""
    return WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": pattern}, {"const": 0}], "examples": examples}
    )


def _text_or_number(pattern: str, kind: str, examples: list[str]) -> Any:
    """Text, or a number whose unit cannot be mistaken."""
    number = {"type": kind, "minimum": 0}
    return WithJsonSchema({"anyOf": [{"type": "string", "pattern": pattern}, number], "examples": examples})


def _as_text(text: Callable[[Any], str]) -> PlainSerializer:
    return PlainSerializer(text, return_type=str, when_used="json-unless-none")


Rate = Annotated[
    float,
    BeforeValidator(_parse_rate),
    _as_text(rate_text),
    _text(_NUMBER + _RATE_UNIT + r"\s*$", ["100Gbit", "250Mbit"]),
]
"""Bits per second (decimal). `100Gbit` in a file."""
Duration = Annotated[
    float,
    BeforeValidator(_parse_duration),
    _as_text(duration_text),
    _text(_NUMBER + r"(?:ns|us|µs|ms|s|m|min|h)\s*$", ["25ms", "1.5s"]),
]
"""Seconds. `25ms` in a file."""
Size = Annotated[
    int,
    Field(le=2**50),
    BeforeValidator(_parse_size),
    _as_text(size_text),
    _text(_NUMBER + r"(?:B|[kK]B|[MGT]B|[KMGT]iB)\s*$", ["64MiB", "512B"]),
]
"""Bytes. `64MiB` in a file."""
Tokens = Annotated[
    int,
    Field(le=2**40),
    BeforeValidator(units.parse_tokens),
    _text_or_number(_NUMBER + r"(?:[kKM]|[KM]i)?\s*$", "integer", ["512", "19.4K", "128Ki"]),
]
"""Tokens. `19.4K` is 19,400; `128Ki` is 131,072."""
Fraction = Annotated[
    float,
    BeforeValidator(units.parse_fraction),
    _text_or_number(_NUMBER + r"%?\s*$", "number", ["0.1%", "0.001"]),
]
"""A share in [0, 1]. `0.1%` in a file."""
Frequency = Annotated[
    float,
    BeforeValidator(units.parse_frequency),
    _as_text(frequency_text),
    _text_or_number(_NUMBER + r"(?:/(?:s|m|min|h))?\s*$", "number", ["2/s", "30/m"]),
]
"""Events per second. `2/s` in a file."""
Count = Annotated[int, Strict()]
"""A whole number."""
Number = Annotated[float, Strict()]
"""A number."""
Flag = Annotated[bool, Strict()]
"""true or false."""
