"""Quantities as people write them: `100Gbit`, `25ms`, `64MiB`, `19.4K`, `0.1%`.

Parsers take text (or a plain number where the unit cannot be mistaken) and return plain numbers in
the base unit that the name says: bits per second, seconds, bytes, tokens, fraction. Formatters go
the other way for screens and errors.
"""

from __future__ import annotations

import math
import re

from prfaas_lab.errors import UnitError

_QUANTITY = re.compile(r"^\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z%µ/]*)\s*$")

_RATE = {
    "bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12,
    "bps": 1.0, "kbps": 1e3, "mbps": 1e6, "gbps": 1e9, "tbps": 1e12,
}  # fmt: skip
_DURATION = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0,
}  # fmt: skip
_SIZE = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_TOKENS = {"": 1, "K": 10**3, "k": 10**3, "M": 10**6, "Ki": 2**10, "Mi": 2**20}


def parse_rate(value: str | float) -> float:
    """Bits per second from `100Gbit`, `1.5Mbit`, `100Gbps`; `0bit` is allowed (an outage)."""
    return _parse(value, {**_RATE}, "rate", "100Mbit or 10Gbit", fold_case=True)


def parse_duration(value: str | float) -> float:
    """Seconds from `25ms`, `1.5s`, `2m`."""
    return _parse(value, _DURATION, "duration", "25ms or 1.5s")


def parse_size(value: str | float) -> int:
    """Bytes from `64MiB`, `10MB`, `512B`."""
    return int(_parse(value, _SIZE, "size", "64MiB or 512B"))


def parse_tokens(value: str | float) -> int:
    """Tokens from `512`, `19.4K` (thousands) or `128Ki` (of 1024)."""
    number = _parse(value, _TOKENS, "token count", "512, 19.4K or 128Ki")
    if abs(number - round(number)) > 1e-6:
        raise UnitError(
            f"{_shown(value)} is not a whole number of tokens", remedy="write 512, 19.4K or 128Ki"
        )
    return round(number)


def parse_fraction(value: str | float) -> float:
    """A fraction in [0, 1] from `0.1%` or `0.001`."""
    number = _parse(value, {"": 1.0, "%": 0.01}, "fraction", "0.1% or 0.001")
    if number > 1:
        raise UnitError(f"{_shown(value)} is more than the whole", remedy="write 0.1% or 0.001")
    return number


def parse_frequency(value: str | float) -> float:
    """Events per second from `2/s`, `30/m` or a plain number (per second)."""
    units = {"": 1.0, "/s": 1.0, "/m": 1 / 60, "/min": 1 / 60, "/h": 1 / 3600}
    return _parse(value, units, "frequency", "2/s or 30/m")


def _parse(
    value: str | float, units: dict[str, float] | dict[str, int], what: str, example: str,
    *, fold_case: bool = False,
) -> float:  # fmt: skip
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnitError(f"{_shown(value)} is not a {what}", remedy=f"write {example}")
    match = _QUANTITY.match(str(value))
    if match is None:
        raise UnitError(f"{_shown(value)} is not a {what}", remedy=f"write {example}")
    number, unit = float(match[1]), match[2]
    if fold_case:
        unit = unit.lower()
    if unit not in units:
        trouble = (
            f"has no unit for a {what}" if not unit else f"has the unit {match[2]!r}, which is no {what}"
        )
        raise UnitError(f"{_shown(value)} {trouble}", remedy=f"write {example}")
    result = number * units[unit]
    if not math.isfinite(result):
        raise UnitError(f"{_shown(value)} is not finite", remedy=f"write {example}")
    if number < 0:
        raise UnitError(f"{_shown(value)} is negative", remedy=f"write {example}")
    return result


def _shown(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= 40 else text[:37] + "...")


def format_rate(rate_bps: float) -> str:
    """`100Mbit`, `1.5Gbit`: at most four significant digits, readable back by `parse_rate`."""
    return _scaled(rate_bps, 1000, ("bit", "kbit", "Mbit", "Gbit", "Tbit"))


def format_size(size_bytes: float) -> str:
    """`64MiB`, `1.5KiB`: at most four significant digits."""
    return _scaled(size_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def format_duration(duration_s: float) -> str:
    """`25ms`, `1.5s`, `800us`, `2m05s`: the shortest reading a person expects."""
    if duration_s >= 120:
        minutes, seconds = divmod(round(duration_s), 60)
        return f"{minutes}m{seconds:02d}s"
    if duration_s < 5e-10:  # what is less is rounding
        return "0s"
    if duration_s >= 1:
        return f"{duration_s:.3g}s"
    if duration_s >= 1e-3:
        return f"{duration_s * 1e3:.3g}ms"
    return f"{duration_s * 1e6:.3g}us"


def _scaled(value: float, base: int, names: tuple[str, ...]) -> str:
    power = 0
    while abs(value) >= base * 0.9995 and power < len(names) - 1:
        value, power = value / base, power + 1
    return f"{value:.4g}{names[power]}"
