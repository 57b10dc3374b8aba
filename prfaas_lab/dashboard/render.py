"""The screen as lines, for any size of terminal: essentials first, more where there is room."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from prfaas_lab.dashboard import blocks
from prfaas_lab.dashboard.glyphs import ASCII, UNICODE, Glyphs
from prfaas_lab.dashboard.link_blocks import CHART_ROWS, links
from prfaas_lab.dashboard.state import ScreenState
from prfaas_lab.dashboard.style import fitted, line

TWO_COLUMNS = 150
LEAST_WIDTH, LEAST_HEIGHT = 40, 8
_GAP = 2


class Screen:
    """A renderable that fills the terminal it is drawn on."""

    def __init__(self, state: ScreenState, height: int | None = None) -> None:
        self._state, self._height = state, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyphs = ASCII if options.ascii_only else UNICODE
        height = self._height or options.height or console.height
        lines = frame(self._state, options.max_width, height, glyphs)
        yield Text("\n", no_wrap=True, end="").join(lines)


def frame(state: ScreenState, width: int, height: int, glyphs: Glyphs = UNICODE) -> list[Text]:
    """Exactly `height` lines of exactly `width` cells."""
    if width < LEAST_WIDTH or height < LEAST_HEIGHT:
        lines = [line("terminal too small"), *blocks.header(state, max(width, 20), glyphs)]
    elif width >= TWO_COLUMNS:
        lines = _two_columns(state, width, height, glyphs)
    else:
        lines = _one_column(state, width, height, glyphs)
    lines = lines[:height] + [line() for _ in range(height - len(lines))]
    if glyphs is ASCII:
        return [_plain(fitted(_plain(each), width)) for each in lines]
    return [fitted(each, width) for each in lines]


def _plain(text: Text) -> Text:
    """The same in ASCII: names and messages come from elsewhere, and cutting leaves an ellipsis."""
    if not text.plain.isascii():
        text.plain = text.plain.replace("…", "~").encode("ascii", "replace").decode()
    return text


def _one_column(state: ScreenState, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """Fixed parts first; then engines and links share what is left, the log takes the rest."""
    head = blocks.header(state, width, glyphs)
    tail = [*blocks.latency(state, width, glyphs), *blocks.requests(state, width, glyphs)]
    room = height - len(head) - len(tail)
    directions = max(1, len(state.links))
    for_links = min(directions + 1, max(3, room // 4))
    for_engines = min(max(1, len(state.engines)) + 1, max(3, room - for_links - 3))
    spare = room - for_engines - for_links - 8
    if spare >= 3 * directions:
        for_links += min(spare, CHART_ROWS * directions)
    middle = [
        *blocks.engines(state, width, for_engines, glyphs),
        *links(state, width, for_links, glyphs),
    ]
    return [*head, *middle, *tail, *blocks.log(state, width, room - len(middle), glyphs)]


def _two_columns(state: ScreenState, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    head = [*blocks.header(state, width, glyphs), line()]
    half, rows = (width - _GAP) // 2, height - len(head)
    left = _left(state, half, rows, glyphs)
    right = _right(state, width - half - _GAP, rows, glyphs)
    pairs = ((left[n] if n < len(left) else line(), right[n] if n < len(right) else line())
             for n in range(rows))  # fmt: skip
    return [*head, *(fitted(one, half + _GAP).append_text(other) for one, other in pairs)]


def _left(state: ScreenState, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    """What is served: engines, latencies, requests."""
    tail = [
        line(), *blocks.latency(state, width, glyphs),
        line(), *blocks.requests(state, width, glyphs),
        line(), *blocks.legs(state, width, glyphs),
    ]  # fmt: skip
    room = rows - len(tail)
    top = blocks.engines(state, width, max(3, room - 6), glyphs)
    left = room - len(top) - 1
    if left >= 4:
        tail += [line(), *blocks.recent(state, width, left, glyphs)]
    return [*top, *tail]


def _right(state: ScreenState, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    """What crosses: links, and what happened."""
    shown = links(state, width, rows - max(8, rows // 4), glyphs)
    return [*shown, line(), *blocks.log(state, width, rows - len(shown) - 1, glyphs)]
