"""The live screen: the whole terminal, redrawn eight times a second."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.live import Live

from prfaas_lab.dashboard.headless import Headless
from prfaas_lab.dashboard.render import Screen
from prfaas_lab.dashboard.state import ScreenState
from prfaas_lab.dashboard.ticker import Ticker
from prfaas_lab.metrics.ledger import Ledger

PERIOD_S = 1 / 8


class Dashboard:
    """Draws a ledger on the terminal's alternate screen while `async with` lasts.

    It takes in events from its making on, so make it before the first is recorded. What others
    print meanwhile does not garble the screen.
    """

    def __init__(self, ledger: Ledger, console: Console | None = None) -> None:
        self.state = ScreenState(ledger.tally)
        self._ledger = ledger
        self._unsubscribe = ledger.subscribe(self.state.observe)
        self._live = Live(console=console or Console(), screen=True, auto_refresh=False)
        self._ticker = Ticker(PERIOD_S, self.draw)

    def draw(self) -> None:
        """Draw one frame now."""
        self.state.advance(self._ledger.now())
        self._live.update(Screen(self.state), refresh=True)

    async def __aenter__(self) -> Dashboard:
        self._live.start()
        self._ticker.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back. A fault of the drawing is raised here unless the run has its own."""
        self._ticker.stop()
        self._unsubscribe()
        self._live.stop()
        if self._ticker.error is not None and error is None:
            raise self._ticker.error


def screen_for(
    ledger: Ledger, *, headless: bool = False, console: Console | None = None
) -> Dashboard | Headless:
    """The live screen on a terminal that can show it, lines of text elsewhere or when asked."""
    console = console or Console()
    if headless or not console.is_terminal or console.is_dumb_terminal:
        return Headless(ledger, console)
    return Dashboard(ledger, console)
