"""Colours by what they mean, and text that fits. Nothing is told by colour alone."""

from __future__ import annotations

from rich.text import Text

from prfaas_lab.dashboard.glyphs import Glyphs, bar
from prfaas_lab.units import format_duration, format_rate

GOOD, WARN, BAD = "green", "yellow", "bold red"
NAME, VALUE, LABEL, TITLE = "cyan", "bold", "dim", "bold blue"
OFFLOADED, LOCAL = "magenta", "cyan"
LEVELS = {"info": "", "warning": WARN, "error": BAD}

Cell = str | tuple[str, str] | Text
"""Text, with or without its style."""


def line(*cells: Cell) -> Text:
    return Text.assemble(*cells, no_wrap=True, overflow="ellipsis", end="")


def fitted(text: Text, width: int) -> Text:
    """Exactly `width` cells: cut with an ellipsis, or filled with blanks."""
    text.truncate(width, overflow="ellipsis", pad=True)
    return text


def title(left: str, right: str, width: int, glyphs: Glyphs) -> Text:
    """A rule that names what is under it, with the heads of its columns at the right."""
    if not right:
        return line(
            (f"{glyphs.rule} ", LABEL),
            (left, TITLE),
            (f" {glyphs.rule * width}"[: width - len(left) - 2], LABEL),
        )
    rule = glyphs.rule * max(1, width - len(left) - len(right) - 4)
    return line((f"{glyphs.rule} ", LABEL), (left, TITLE), (f" {rule} ", LABEL), (right, LABEL))


def meter(fraction: float, width: int, colour: str, glyphs: Glyphs) -> Text:
    """A bar, its empty part dim."""
    full, empty = bar(fraction, width, glyphs)
    return line((full, colour), (empty, LABEL))


def cut(text: str, width: int) -> str:
    """At most `width` characters, the middle left out: both ends of a name tell it apart."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def load_style(fraction: float) -> str:
    """Green while there is room, yellow when nearly full."""
    return WARN if fraction >= 0.9 else GOOD


def milliseconds(value_ms: float | None) -> str:
    return "-" if value_ms is None else format_duration(_three_digits(max(0.0, value_ms)) / 1e3)


def rate(value_bps: float | None) -> str:
    return "-" if value_bps is None else format_rate(_three_digits(value_bps))


def size(value_bytes: float | None) -> str:
    if value_bytes is None:
        return "-"
    power = 0
    while value_bytes >= 999.5 and power < len(_SIZES) - 1:
        value_bytes, power = value_bytes / 1024, power + 1
    return f"{_short(value_bytes)}{_SIZES[power]}"


def number(value: float | None) -> str:
    """`0`, `4.2`, `310`, `12.5K`: at most three digits."""
    if value is None:
        return "-"
    for unit, factor in (("M", 1e6), ("K", 1e3)):
        if abs(value) >= 0.9995 * factor:
            return f"{_short(value / factor)}{unit}"
    return _short(value)


def clock(seconds: float) -> str:
    """`0:05`, `12:40`, `1:02:03`."""
    minutes, left = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")
