"""Quantities as pydantic types: text with a unit in the file, a plain number in the model.

Each serialises back to the number in its base unit, so a resolved file re-reads to the same value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from prfaas_lab import units


def _quantity(parse: Callable[[Any], float], pattern: str, examples: list[str]) -> tuple[Any, Any]:
    schema = {
        "anyOf": [{"type": "string", "pattern": pattern}, {"type": "number", "minimum": 0}],
        "examples": examples,
    }
    return BeforeValidator(parse), WithJsonSchema(schema)


_NUMBER = r"^\s*\d*\.?\d+(?:[eE][+-]?\d+)?\s*"


def _rate(value: Any) -> float:
    # A bare 0 means an outage and cannot be mistaken; any other bare number could be.
    if isinstance(value, float):
        return units.parse_rate(f"{value!r}bit")  # a resolved file carries floats of bit/s
    return 0.0 if value == 0 and not isinstance(value, bool) else units.parse_rate(value)


def _duration(value: Any) -> float:
    if isinstance(value, float):
        return units.parse_duration(f"{value!r}s")
    return 0.0 if value == 0 and not isinstance(value, bool) else units.parse_duration(value)


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return units.parse_size(f"{value}B")
    return units.parse_size(value)


Rate = Annotated[float, *_quantity(_rate, _NUMBER + r"[kKmMgGtT]?(?:bit|bps)$", ["100Gbit", "250Mbit"])]
"""Bits per second (decimal). `100Gbit` in a file."""
Duration = Annotated[float, *_quantity(_duration, _NUMBER + r"(?:ns|us|µs|ms|s|m|min|h)$", ["25ms", "1.5s"])]
"""Seconds. `25ms` in a file."""
Size = Annotated[int, *_quantity(_size, _NUMBER + r"(?:B|[kKMGT]i?B)$", ["64MiB", "512B"])]
"""Bytes. `64MiB` in a file."""
Tokens = Annotated[int, *_quantity(units.parse_tokens, _NUMBER + r"(?:[kKM]i?)?$", ["512", "19.4K", "128Ki"])]
"""Tokens. `19.4K` is 19,400; `128Ki` is 131,072."""
Fraction = Annotated[float, *_quantity(units.parse_fraction, _NUMBER + r"%?$", ["0.1%", "0.001"])]
"""A share in [0, 1]. `0.1%` in a file."""
Frequency = Annotated[float, *_quantity(units.parse_frequency, _NUMBER + r"(?:/(?:s|m|min|h))?$", ["2/s", "30/m"])]
"""Events per second. `2/s` in a file."""
