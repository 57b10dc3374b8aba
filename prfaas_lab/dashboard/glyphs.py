"""Bars, sparklines and charts out of characters, for terminals with Unicode and without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """What things are drawn with. `levels` run from empty to full."""

    levels: str
    full: str
    empty: str
    rule: str
    cap: str
    arrow: str
    dot: str
    done: str
    doing: str
    wrong: str
    outage: str


UNICODE = Glyphs(
    levels=" ▁▂▃▄▅▆▇█", full="━", empty="╌", rule="─", cap="╌", arrow="→", dot="·", done="✓", doing="▸",
    wrong="✗", outage="✕",
)  # fmt: skip
ASCII = Glyphs(
    levels=" ._-=+*%#", full="=", empty=".", rule="-", cap="-", arrow=">", dot="|", done="+", doing=">",
    wrong="!", outage="x",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """A link's rate, and what it was configured to; None when unshaped."""

    rate_bps: float
    configured_bps: float | None


def bar(fraction: float, width: int, glyphs: Glyphs) -> tuple[str, str]:
    """The filled and the empty cells of a bar, `width` together; a little something is never nothing."""
    share = min(1.0, max(0.0, fraction))
    filled = round(share * width)
    if share > 0:
        filled = max(1, filled)
    return glyphs.full * filled, glyphs.empty * (width - filled)


def ceiling_bps(points: Sequence[Point]) -> float:
    """The top of a chart: the configured rate, or a little above what was seen where that is less
    than a fifth of it, lest the chart be empty."""
    seen = max((point.rate_bps for point in points), default=0.0)
    configured = max((point.configured_bps or 0.0 for point in points), default=0.0)
    return (1.25 * seen if 0 < seen < configured / 5 else max(seen, configured)) or 1.0


def sparkline(points: Sequence[Point], width: int, glyphs: Glyphs) -> str:
    """The last `width` points in one row, right-aligned; an outage is marked where nothing passed."""
    shown = points[-width:]
    top = ceiling_bps(shown)
    return "".join(_spark(point, top, glyphs) for point in shown).rjust(width)


def _spark(point: Point, top: float, glyphs: Glyphs) -> str:
    if point.configured_bps == 0 and point.rate_bps < top / 100:
        return glyphs.outage
    steps = len(glyphs.levels) - 1
    level = min(steps, round(point.rate_bps / top * steps))
    if level == 0 and point.rate_bps > 0:
        level = 1
    return glyphs.levels[level]


def chart(points: Sequence[Point], width: int, height: int, glyphs: Glyphs) -> list[str]:
    """The last `width` points as columns of `height` rows, the configured rate as a broken line
    wherever the column leaves it free."""
    shown = points[-width:]
    top = ceiling_bps(shown)
    columns = [_column(point, top, height, glyphs) for point in shown]
    return ["".join(column[row] for column in columns).rjust(width) for row in range(height)]


def _column(point: Point, top: float, height: int, glyphs: Glyphs) -> list[str]:
    steps = len(glyphs.levels) - 1
    eighths = round(min(1.0, point.rate_bps / top) * height * steps)
    if eighths == 0 and point.rate_bps > 0:
        eighths = 1
    cells = [glyphs.levels[min(steps, max(0, eighths - row * steps))] for row in reversed(range(height))]
    if point.configured_bps is not None and point.configured_bps <= top:
        row = height - 1 - min(height - 1, max(0, math.ceil(point.configured_bps / top * height) - 1))
        if cells[row] == glyphs.levels[0]:
            cells[row] = glyphs.outage if point.configured_bps == 0 else glyphs.cap
    return cells
