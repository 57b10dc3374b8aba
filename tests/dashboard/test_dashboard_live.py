from __future__ import annotations

import asyncio
import io
import re
import sys

import pytest
from fake_run import FakeRun
from rich.console import Console
from rich.text import Text

from prfaas_lab.dashboard.headless import PERIOD_S, Headless, status_line
from prfaas_lab.dashboard.live import Dashboard, screen_for
from prfaas_lab.dashboard.paint import Painter
from prfaas_lab.dashboard.render import frame
from prfaas_lab.dashboard.state import ScreenState
from prfaas_lab.dashboard.ticker import Ticker
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger

EVENTS = FakeRun(requests=30, failures=1).events()


def terminal(width: int = 80, height: int = 24, color: str | None = "standard") -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=color, _environ={}
    )


def pipe() -> Console:
    return Console(file=io.StringIO(), width=80, _environ={})


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def seen(output: str, width: int, height: int) -> list[str]:
    """The screen of a terminal that was sent this: cursor moves and text, colours left out."""
    rows = [" " * width] * height
    for number, text in re.findall(r"\x1b\[(\d+);1H([^\x1b]*(?:\x1b\[[0-9;]*m[^\x1b]*)*)", output):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
        rows[int(number) - 1] = plain + rows[int(number) - 1][len(plain) :]
    return rows


@pytest.mark.parametrize("color", [None, "standard", "256", "truecolor"])
def test_frame_after_frame_the_terminal_shows_the_frame(color: str | None) -> None:
    console, state = terminal(color=color), ScreenState.of([])
    painter = Painter(console)
    painter.enter()
    for number, event in enumerate(EVENTS):
        state.tally.fold(event)
        state.observe(event)
        if number % 50 == 0:
            lines = frame(state, 80, 24)
            painter.paint(lines)
            assert seen(printed(console), 80, 24) == [line.plain for line in lines]


def test_what_did_not_change_is_not_written_again() -> None:
    console = terminal()
    painter = Painter(console)
    painter.paint([Text("one"), Text("two")])
    before = len(printed(console))
    painter.paint([Text("one"), Text("two")])
    assert len(printed(console)) == before
    painter.paint([Text("one"), Text("new")])
    assert "one" not in printed(console)[before:]


def test_no_color_is_respected() -> None:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=80, height=24, color_system="256", no_color=True
    )
    Painter(console).paint(frame(ScreenState.of(EVENTS), 80, 24))
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", printed(console))


async def test_the_dashboard_takes_the_terminal_and_gives_it_back() -> None:
    console, clock = terminal(), Clock()
    ledger = Ledger(clock, 0.0)
    dashboard = Dashboard(ledger, console)
    for event in EVENTS[:40]:  # before the loop ran, and not lost
        ledger.record(event)
    clock.now = 8.0
    async with dashboard:
        assert printed(console).startswith("\x1b[?1049h")
        assert any("east-p0" in row for row in seen(printed(console), 80, 24))
        print("a library has something to say")
        dashboard.draw()
        assert any("a library has something" in row for row in seen(printed(console), 80, 24))
    assert printed(console).endswith("\x1b[?1049l")
    assert type(sys.stdout).__name__ != "_Printed"
    assert ledger.record(ev.Noted(at_s=9.0, level="info", text="later")) is None


async def test_the_terminal_is_given_back_when_the_run_breaks() -> None:
    console = terminal()
    with pytest.raises(RuntimeError, match="the run broke"):
        async with Dashboard(Ledger(Clock(), 0.0), console):
            raise RuntimeError("the run broke")
    assert printed(console).endswith("\x1b[?1049l")


async def test_a_broken_screen_does_not_end_the_run_but_is_told_after_it() -> None:
    dashboard = Dashboard(Ledger(Clock(), 0.0), terminal())
    dashboard._ticker = Ticker(0.01, lambda: 1 / 0)
    ran_on = False
    with pytest.raises(ZeroDivisionError):
        async with dashboard:
            ran_on = True
    assert ran_on


async def test_a_ticker_ticks_until_it_is_stopped() -> None:
    ticks = []
    ticker = Ticker(0.0, lambda: ticks.append(1))
    ticker.start()
    for _ in range(5):
        await asyncio.sleep(0)
    ticker.stop()
    told = len(ticks)
    for _ in range(5):
        await asyncio.sleep(0)
    assert told > 1
    assert len(ticks) == told


def test_the_screen_fits_where_it_is_shown() -> None:
    ledger = Ledger(Clock(), 0.0)
    assert isinstance(screen_for(ledger, console=terminal()), Dashboard)
    assert isinstance(screen_for(ledger, console=terminal(), headless=True), Headless)
    assert isinstance(screen_for(ledger, console=pipe()), Headless)


def test_a_piped_run_is_told_in_plain_lines() -> None:
    console, clock = pipe(), Clock()
    ledger = Ledger(clock, 0.0)
    headless = Headless(ledger, console)
    for event in EVENTS:
        if event.at_s > 20.5:
            break
        clock.now = event.at_s
        ledger.record(event)
    headless.draw()
    text = printed(console)
    assert "\x1b" not in text
    assert all(line.startswith("[0:") for line in text.splitlines())
    assert "[0:20] warning: link wan narrows" in text
    last = text.splitlines()[-1]
    for fact in ("[0:20] running", "in flight", "1 failed", "TTFT p50", "TPOT", "token/s", "wan east→west"):
        assert fact in last


def test_a_link_that_changes_all_the_time_does_not_flood_the_lines() -> None:
    console = pipe()
    ledger = Ledger(Clock(), 0.0)
    headless = Headless(ledger, console)
    for number in range(200):
        at = number / 10
        ledger.record(ev.LinkChanged(at_s=at, link="wan", source="east", due_s=at, change="rate 1Mbit"))
    assert len(printed(console).splitlines()) == 20 / PERIOD_S
    assert len(headless.state.log.lines) == 1
    assert headless.state.log.lines[0].count == 200


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (6.65, "starting 62% · network 1/1, model 1/1, engines 2/4, links 0/2"),
        (1e9, "done 100% · 29/30 done, 0 in flight · 1 failed"),
    ],
)
def test_the_status_line_says_where_the_run_stands(seconds: float, words: str) -> None:
    assert words in status_line(ScreenState.of(e for e in EVENTS if e.at_s <= seconds)).plain


class HungUp(io.StringIO):
    """What a closed terminal says to whoever writes on."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_a_terminal_that_hangs_up_ends_the_drawing_not_the_run() -> None:
    painter = Painter(Console(file=HungUp(), force_terminal=True, width=20, height=2))
    painter.enter()
    painter.paint([Text("still"), Text("here")])
    painter.leave()
