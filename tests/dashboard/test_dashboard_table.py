from __future__ import annotations

import io
from pathlib import Path

from fake_run import FakeRun
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console

from prfaas_lab.dashboard.snapshot import snapshot
from prfaas_lab.dashboard.state import ScreenState
from prfaas_lab.dashboard.table import PIPED_WIDTH, print_summary
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.summary import summarize
from prfaas_lab.metrics.tally import Tally

EVENTS = FakeRun(requests=40, failures=2).events()


def piped(events: list[ev.Event]) -> str:
    console = Console(file=io.StringIO(), _environ={})
    print_summary(summarize(Tally.of(events)), files="runs/now", console=console)
    return console.file.getvalue()


def test_the_table_tells_a_run_in_plain_text() -> None:
    text = piped(EVENTS)
    for fact in (
        "VALID  bursty on two-sites, emulate, tun shaper, qwen3-next-tiny, seed 1",
        "40 submitted, 38 completed, 2 failed", "2 in prefill: the engine died (and the like)",
        "threshold at 512 tokens",
        "38 outputs compared", "0 mismatched", "runs/now", "TTFT", "TPOT", "ITL", "E2EL", "p99",
        "TTFT by leg", "offloaded (", "local (", "wire", "wan from east", "100Mbit", "95.1Mbit",
        "50.3ms/50ms", "west-d0", "lab-west-d0", "busy",
    ):  # fmt: skip
        assert fact in text, fact
    assert "\x1b" not in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= PIPED_WIDTH


def test_compression_has_a_row_only_where_there_is_any() -> None:
    assert "compression" not in piped(EVENTS)
    zstd = [
        replace(e, compression="zstd") if isinstance(e, ev.RunStarted)
        else replace(e, wire_bytes=e.sent_bytes // 2) if isinstance(e, ev.TransferFinished)
        else replace(e, compared_tokens=4, equal_tokens=3) if isinstance(e, ev.RequestVerified)
        else e
        for e in EVENTS
    ]  # fmt: skip
    (row,) = (line for line in piped(zstd).splitlines() if line.startswith("compression"))
    assert "zstd, 2.00 to 1" in row
    assert "75.0% of tokens and 100.0% of outputs agree" in row


def test_the_reasons_for_doubt_stand_under_the_verdict() -> None:
    hot = [replace(e, cpu_fraction=0.99) if isinstance(e, ev.MachineSampled) else e for e in EVENTS]
    lines = piped(hot).splitlines()
    assert lines[0].startswith("SUSPECT")
    assert lines[1] == "  - the machine's CPUs were 99% busy on average (tolerance 95%)"


@settings(max_examples=30)
@given(st.lists(st.sampled_from(FakeRun(requests=5, failures=1).events()), max_size=60))
def test_no_run_however_short_breaks_the_table(events: list[ev.Event]) -> None:
    assert piped(events)


def test_a_snapshot_is_a_picture_that_calls_nowhere(tmp_path: Path) -> None:
    snapshot(ScreenState.of(e for e in EVENTS if e.at_s < 27), tmp_path / "screen.svg", width=80, height=24)
    svg = (tmp_path / "screen.svg").read_text()
    assert svg.startswith("<svg")
    assert "west-d0" in svg
    assert "cdnjs" not in svg
    assert "@font-face" not in svg
