from __future__ import annotations

import pytest
from fake_run import FakeRun

from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.summary import summarize
from prfaas_lab.metrics.tally import Tally
from prfaas_lab.metrics.windows import Windows


def observed(events: list[ev.Event]) -> tuple[Tally, Windows]:
    tally, windows = Tally(), Windows()
    for event in events:
        tally.fold(event)
        if isinstance(event, ev.RequestEvent):
            windows.observe(event, tally.requests[event.request_id])
    return tally, windows


def steady(seconds: int, tokens_per_s: int = 10) -> list[ev.Event]:
    """One request that gives a token every tenth of a second from t=1 on."""
    name = {"request_id": "r"}
    total = seconds * tokens_per_s
    return [
        ev.RequestSubmitted(at_s=0.5, prompt_tokens=1, output_tokens=total, **name),
        *(ev.TokensEmitted(at_s=1 + n / tokens_per_s, engine="d", count=1, **name) for n in range(total)),
    ]


def test_the_whole_run_agrees_with_the_summary() -> None:
    tally, windows = observed(FakeRun(requests=60).events())
    summary, whole = summarize(tally), windows.whole()
    for name in ("ttft_ms", "tpot_ms", "itl_ms"):
        assert getattr(whole, name).mean == pytest.approx(summary[f"mean_{name}"])
    assert whole.itl_ms.p99 == pytest.approx(summary["p99_itl_ms"], rel=0.02)


def test_a_steady_stream_has_a_steady_rate() -> None:
    _, windows = observed(steady(40))
    figures = windows.last(41.0)
    assert figures.tokens_per_s == pytest.approx(10, rel=0.05)
    assert figures.itl_ms.median == pytest.approx(100, rel=0.02)


def test_what_is_older_than_the_window_is_forgotten() -> None:
    _, windows = observed(steady(5))
    assert windows.last(6.5).itl_ms.mean == pytest.approx(100, rel=1e-3)
    assert windows.last(30.0).itl_ms.mean is None
    assert windows.last(30.0).tokens_per_s == 0
    assert windows.whole().itl_ms.mean is not None


def test_memory_does_not_grow_with_time() -> None:
    _, windows = observed(steady(300))
    assert len(windows._slots) <= 12


def test_nothing_is_said_before_anything_happened() -> None:
    figures = Windows().last(3.0)
    assert figures.tokens_per_s is None
    assert figures.ttft_ms.mean is None
