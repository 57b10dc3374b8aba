from __future__ import annotations

import io

import pytest
from fake_run import FakeRun
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console

from prfaas_lab.dashboard.glyphs import ASCII, UNICODE
from prfaas_lab.dashboard.render import Screen, frame
from prfaas_lab.dashboard.state import ScreenState
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.tally import Tally

SIZES = [(80, 24), (120, 36), (160, 48)]
EVENTS = FakeRun(requests=60, failures=1).events()


def at(seconds: float, events: list[ev.Event] = EVENTS) -> ScreenState:
    return ScreenState.of(event for event in events if event.at_s <= seconds)


def drawn(state: ScreenState, width: int, height: int) -> str:
    return "\n".join(line.plain for line in frame(state, width, height))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_essentials_of_a_running_system_are_visible(width: int, height: int) -> None:
    screen = drawn(at(27), width, height)
    for fact in (
        "bursty", "two-sites", "emulate", "tun shaper", "RUNNING", "0:19 of 0:30", "0:11 left",
        "east-p0", "west-p0", "west-d0", "west-d1", "prefill", "decode",
        "wan→west", "wan→east", "40Mbit", "100Mbit", "50.3ms",
        "TTFT", "TPOT", "ITL", "mean", "p50", "p90", "p99", "last 10 s", "whole run", "req/s", "token/s",
        "threshold > 512 tokens", "offloaded", "submitted", "in flight", "1 failed", "verified",
        "warning: link wan narrows", "wan from east: rate 40Mbit",
    ):  # fmt: skip
        assert fact in screen, fact


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("seconds", [-1, 0, 0.3, 6.6, 7.8, 8.0, 12, 27, 80, 150, 1e9])
def test_every_frame_fills_the_terminal_exactly(width: int, height: int, seconds: float) -> None:
    lines = frame(at(seconds), width, height)
    assert len(lines) == height
    assert {line.cell_len for line in lines} == {width}


def test_the_bring_up_shows_its_steps() -> None:
    screen = drawn(at(6.65), 80, 24)
    assert "STARTING" in screen
    assert "✓ network ✓ model ▸ engines 2/4" in screen
    assert "not ready yet" in screen


def test_verifying_shows_how_far_it_is() -> None:
    verifying = next(
        event for event in EVENTS if isinstance(event, ev.PhaseChanged) and event.name == "verifying"
    )
    half = replace(verifying, at_s=verifying.at_s + 10, done=30)
    screen = drawn(
        at(half.at_s, [*(event for event in EVENTS if event.at_s <= verifying.at_s), half]), 80, 24
    )
    assert "VERIFYING" in screen
    assert "30 of 60" in screen
    assert "0:10 left" in screen


def test_progress_goes_by_what_ends_the_arrivals_first() -> None:
    long = [
        replace(event, duration_s=3600.0) if isinstance(event, ev.RunStarted) else event for event in EVENTS
    ]
    screen = drawn(at(27, long), 80, 24)
    assert "of 60 requests" in screen
    assert "1:00:00" not in screen


def test_a_wide_terminal_tells_more() -> None:
    wide = drawn(at(27), 160, 48)
    for fact in ("TTFT by leg", "1st byte", "latest requests", "r00020", "the configured one"):
        assert fact in wide
        assert fact not in drawn(at(27), 80, 24)


def test_without_unicode_nothing_but_ascii_is_drawn() -> None:
    foreign = ev.Noted(at_s=27, level="info", text="中文 " * 100)
    for width, height in SIZES:
        for line in frame(at(27, [*EVENTS, foreign]), width, height, ASCII):
            assert line.plain.isascii()
            assert line.cell_len == width


def test_colour_says_nothing_that_words_do_not() -> None:
    died = ev.EngineDied(at_s=26, engine="west-d0", exit_status="signal 9", last_words="out of memory")
    screen = drawn(at(27, [*EVENTS, died]), 80, 24)
    assert "✗ died" in screen
    assert "error: west-d0 died (signal 9): out of memory" in screen


def test_an_outage_is_marked_where_nothing_passes() -> None:
    dark = [
        replace(event, configured_bps=0.0, bytes_total=10**9) if isinstance(event, ev.LinkSampled) else event
        for event in EVENTS
    ]
    assert "✕✕✕" in drawn(at(27, dark), 80, 24)


def test_many_engines_are_told_by_datacenter_and_role() -> None:
    engines = tuple((f"west-d{n}", "west", "decode") for n in range(400))
    started = replace(EVENTS[0], engines=engines)
    state = ScreenState.of(
        [
            started,
            *(ev.EngineSampled(at_s=1, engine=name, queued=1, running=2, busy_s=0, tokens_total=0)
              for name, _, _ in engines),
        ]
    )  # fmt: skip
    screen = drawn(state, 80, 24)
    assert "x400" in screen
    assert "800" in screen


def test_many_links_show_the_busiest_and_count_the_rest() -> None:
    links = tuple((f"wan{n}", "east", "west") for n in range(40))
    screen = drawn(ScreenState.of([replace(EVENTS[0], links=links)]), 80, 24)
    assert "quieter directions" in screen
    assert "TTFT" in screen
    assert "log" in screen


def test_names_of_the_greatest_length_do_not_break_the_columns() -> None:
    longest = "x" * 24
    started = replace(
        EVENTS[0], links=((longest, "a" * 24, "b" * 24),), engines=((longest + "-p0", "a", "prefill"),)
    )
    for width, height in SIZES:
        assert {line.cell_len for line in frame(ScreenState.of([started]), width, height)} == {width}


def test_text_from_elsewhere_cannot_move_the_cursor() -> None:
    state = ScreenState.of([ev.Noted(at_s=0, level="error", text="bad\x1b[2J\nnews 中文")])
    screen = drawn(state, 80, 24)
    assert "\x1b" not in screen
    assert "news 中文" in screen
    assert {line.cell_len for line in frame(state, 80, 24)} == {80}


def test_the_screen_is_drawn_the_size_of_its_console() -> None:
    console = Console(width=100, height=30, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(Screen(at(27)))
    lines = console.file.getvalue().rstrip("\n").split("\n")
    assert len(lines) == 30
    assert all(len(line) <= 100 for line in lines)


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(FakeRun(requests=6, failures=1).events()), max_size=120),
    st.integers(1, 200), st.integers(1, 60), st.sampled_from([ASCII, UNICODE]),
)  # fmt: skip
def test_no_stream_and_no_size_breaks_the_screen(
    events: list[ev.Event], width: int, height: int, glyphs: object
) -> None:
    lines = frame(ScreenState.of(events), width, height, glyphs)
    assert len(lines) == height
    assert {line.cell_len for line in lines} == {width}


def test_transfers_in_flight_never_go_below_none() -> None:
    state = ScreenState(Tally())
    for event in EVENTS:
        state.tally.fold(event)
        state.observe(event)
        assert all(link.transfers >= 0 for link in state.links.values())
    assert all(link.transfers == 0 for link in state.links.values())
