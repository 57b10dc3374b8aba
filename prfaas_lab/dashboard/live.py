"""The live screen: the whole terminal, redrawn eight times a second."""

from __future__ import annotations

import io
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from types import TracebackType

from rich.console import Console

from prfaas_lab.dashboard.glyphs import ASCII, UNICODE
from prfaas_lab.dashboard.headless import Headless
from prfaas_lab.dashboard.paint import Painter
from prfaas_lab.dashboard.render import frame
from prfaas_lab.dashboard.state import ScreenState
from prfaas_lab.dashboard.ticker import Ticker
from prfaas_lab.metrics.events import Noted
from prfaas_lab.metrics.ledger import Ledger

PERIOD_S = 1 / 8


class Dashboard:
    """Draws a ledger on the terminal's alternate screen while `async with` lasts.

    It takes in events from its making on, so make it before the first is recorded. What others
    print meanwhile goes to the log, lest it garble the screen.
    """

    def __init__(self, ledger: Ledger, console: Console | None = None) -> None:
        self.state = ScreenState(ledger.tally)
        self._ledger = ledger
        self._console = console or Console()
        self._glyphs = ASCII if self._console.options.ascii_only else UNICODE
        self._painter = Painter(self._console)
        self._ticker = Ticker(PERIOD_S, self.draw)
        self._until_exit = ExitStack()
        self._until_exit.callback(ledger.subscribe(self.state.observe))

    def draw(self) -> None:
        """Draw one frame now."""
        self.state.advance(self._ledger.now())
        width, height = self._console.size
        self._painter.paint(frame(self.state, width, height, self._glyphs))

    async def __aenter__(self) -> Dashboard:
        self._painter.enter()
        self._until_exit.callback(self._painter.leave)
        printed = _Printed(self._ledger)
        self._until_exit.enter_context(redirect_stdout(printed))
        self._until_exit.enter_context(redirect_stderr(printed))
        self._ticker.start()
        self._until_exit.callback(self._ticker.stop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back. A fault of the drawing is raised here unless the run has its own."""
        self._until_exit.close()
        if self._ticker.error is not None and error is None:
            raise self._ticker.error


class _Printed(io.TextIOBase):
    """What is printed while the screen is ours, noted line by line in the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._rest = ledger, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            self._ledger.record(Noted(at_s=self._ledger.now(), level="warning", text=line))
        return len(text)


def screen_for(
    ledger: Ledger, *, headless: bool = False, console: Console | None = None
) -> Dashboard | Headless:
    """The live screen on a terminal that can show it, lines of text elsewhere or when asked."""
    console = console or Console()
    if headless or not console.is_terminal or console.is_dumb_terminal:
        return Headless(ledger, console)
    return Dashboard(ledger, console)
