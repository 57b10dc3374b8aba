"""A run told in lines: one every few seconds, and at once whatever matters."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.text import Text

from prfaas_lab.dashboard import style as st
from prfaas_lab.dashboard.glyphs import ASCII, UNICODE, Glyphs
from prfaas_lab.dashboard.log import LogLine
from prfaas_lab.dashboard.progress import progress
from prfaas_lab.dashboard.state import ScreenState
from prfaas_lab.dashboard.ticker import Ticker
from prfaas_lab.metrics.events import Event
from prfaas_lab.metrics.ledger import Ledger

PERIOD_S = 5.0


class Headless:
    """Prints a ledger while `async with` lasts: the same interface as `Dashboard`."""

    def __init__(self, ledger: Ledger, console: Console | None = None) -> None:
        self.state = ScreenState(ledger.tally)
        self._ledger = ledger
        self._console = console or Console()
        self._glyphs = ASCII if self._console.options.ascii_only else UNICODE
        self._said_s: dict[tuple[str, ...], float] = {}
        self._unsubscribe = ledger.subscribe(self._observe)
        self._ticker = Ticker(PERIOD_S, self.draw)

    def draw(self) -> None:
        """Print one line on how the run stands."""
        self.state.advance(self._ledger.now())
        if self.state.tally.run is not None:
            self._print(status_line(self.state, self._glyphs))

    async def __aenter__(self) -> Headless:
        self._ticker.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ticker.stop()
        self._unsubscribe()
        if self._ticker.error is not None and error is None:
            raise self._ticker.error

    def _observe(self, event: Event) -> None:
        for entry in self.state.observe(event):
            if self._is_news(entry):
                words = entry.text if entry.level == "info" else f"{entry.level}: {entry.text}"
                self._print(st.line(f"[{st.clock(entry.at_s)}] ", (words, st.LEVELS[entry.level])))

    def _is_news(self, entry: LogLine) -> bool:
        """Lines of one kind (a link's changes, a failure) come at most once a period."""
        if not entry.key:
            return True
        if entry.at_s - self._said_s.get(entry.key, -PERIOD_S) < PERIOD_S:
            return False
        self._said_s[entry.key] = entry.at_s
        return True

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def status_line(state: ScreenState, glyphs: Glyphs = UNICODE) -> Text:
    """The run in one line: phase and progress, requests, latencies, the busiest link."""
    how, tally = progress(state), state.tally
    share = "" if how.fraction is None else f" {how.fraction:.0%}"
    parts = [f"[{st.clock(state.now_s)}] {how.phase}{share}"]
    if how.phase == "starting":
        parts.append(_steps(state))
    else:
        parts.append(f"{tally.completed}/{tally.submitted} done, {tally.in_flight} in flight")
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    if how.phase in ("running", "draining"):
        parts += _figures(state, glyphs)
    if how.phase == "verifying":
        parts.append(f"verified {how.words}, {tally.verified['mismatch']} mismatched")
    return st.line(f" {glyphs.dot} ".join(parts))


def _steps(state: ScreenState) -> str:
    return ", ".join(f"{name} {done or 0}/{total}" for name, done, total in state.steps() if total)


def _figures(state: ScreenState, glyphs: Glyphs) -> list[str]:
    lately, tally = state.windows.last(state.now_s), state.tally
    ttft, tpot = lately.ttft_ms, lately.tpot_ms
    share = tally.offloaded / tally.routed if tally.routed else 0.0
    figures = [
        f"TTFT p50 {st.milliseconds(ttft.median)} p99 {st.milliseconds(ttft.p99)}",
        f"TPOT {st.milliseconds(tpot.mean)}",
        f"{st.number(lately.tokens_per_s)} token/s",
        f"offloaded {share:.0%}",
    ]
    if state.links:
        link = max(state.links.values(), key=lambda trace: trace.rate.per_s or 0.0)
        limit = "" if link.configured_bps is None else f" of {st.rate(link.configured_bps)}"
        figures.append(
            f"{link.link} {link.source}{glyphs.arrow}{link.destination} {st.rate(link.rate.per_s)}{limit}"
        )
    return figures
