from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from fake_run import FakeRun
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from prfaas_lab.errors import LabError
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.codec import read_events
from prfaas_lab.metrics.fidelity import judge
from prfaas_lab.metrics.files import EventWriter, write_requests, write_summary
from prfaas_lab.metrics.handover import LEGS
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.metrics.summary import summarize
from prfaas_lab.metrics.tally import Tally

NAMED = [
    "submitted", "completed", "failed", "duration", "request_throughput", "output_throughput",
    "total_token_throughput", "total_input_tokens", "total_output_tokens", "offload_fraction",
    "threshold_tokens", "policy", "shaper", "mode", "seed", "versions", "verify", "links", "engines",
    "handover", "fidelity",
    *(f"{which}_{what}_ms" for what in ("ttft", "tpot", "itl", "e2el")
      for which in ("mean", "median", "std", "p90", "p99")),
]  # fmt: skip


def test_the_summary_has_the_keys_people_know() -> None:
    summary = summarize(Tally.of(FakeRun().events()))
    assert set(NAMED) <= set(summary)
    assert set(summary["verify"]) == {
        "what", "compared", "mismatched", "differing", "ties", "output_agreement", "token_agreement",
    }  # fmt: skip
    assert set(summary["transport"]) == {"compression", "wire_bytes", "compression_ratio"}
    assert {"bytes", "mean_bps", "utilization", "configured_bps", "measured_bps", "measured_rtt_ms"} <= set(
        summary["links"]["wan"]
    )
    assert {"role", "datacenter", "netns", "pid", "busy_fraction"} <= set(summary["engines"]["west-d0"])
    assert set(summary["fidelity"]) == {"verdict", "reasons"}


def test_the_figures_are_those_of_the_completed_requests() -> None:
    tally = Tally.of(FakeRun(requests=50, failures=5).events())
    summary = summarize(tally)
    done = [record for record in tally.requests.values() if record.outcome == "completed"]
    ttft_ms = [1e3 * record.ttft_s for record in done]
    assert summary["submitted"] == 50
    assert (summary["completed"], summary["failed"], summary["in_flight"]) == (45, 5, 0)
    assert summary["mean_ttft_ms"] == pytest.approx(np.mean(ttft_ms))
    assert summary["p99_ttft_ms"] == pytest.approx(np.percentile(ttft_ms, 99))
    assert summary["request_throughput"] == pytest.approx(45 / summary["duration"])
    assert summary["total_output_tokens"] == sum(record.output_tokens for record in done)
    assert summary["failures"] == [{"stage": "prefill", "reason": "the engine died", "count": 5}]


def compressed(events: list[ev.Event], *, differs: str, wire_share: float) -> list[ev.Event]:
    """The run with int8 on its wire, and an output that differs in its last token."""
    out: list[ev.Event] = []
    for e in events:
        match e:
            case ev.RunStarted():
                e = replace(e, compression="int8")
            case ev.TransferFinished():
                e = replace(e, wire_bytes=int(wire_share * e.sent_bytes))
            case ev.LinkSampled():
                e = replace(e, bytes_total=int(wire_share * e.bytes_total))
            case ev.RequestVerified():
                wrong = e.request_id == differs
                outcome = "differs" if wrong else "match"
                e = replace(e, outcome=outcome, compared_tokens=10, equal_tokens=10 - wrong)
        out.append(e)
    return out


def test_what_compression_gains_and_costs_is_told_and_is_no_fault() -> None:
    events = compressed(FakeRun(requests=20).events(), differs="r00003", wire_share=0.25)
    summary = summarize(Tally.of(events))
    assert summary["fidelity"] == {"verdict": "VALID", "reasons": []}
    assert summary["transport"]["compression"] == "int8"
    assert summary["transport"]["compression_ratio"] == pytest.approx(4, rel=1e-3)
    assert summary["verify"]["mismatched"] == 0
    assert summary["verify"]["differing"] == 1
    assert summary["verify"]["output_agreement"] == 19 / 20
    assert summary["verify"]["token_agreement"] == 199 / 200


def test_kvcache_that_crosses_as_it_is_has_a_ratio_of_one() -> None:
    summary = summarize(Tally.of(FakeRun(requests=5).events()))
    assert summary["transport"]["wire_bytes"] == summary["total_kvcache_bytes"] > 0
    assert summary["transport"]["compression_ratio"] == 1


def test_failures_of_one_cause_are_counted_together() -> None:
    events = [
        replace(e, reason=f"{e.request_id}: no progress for 30.{n % 7} s")
        if isinstance(e, ev.RequestFailed)
        else e
        for n, e in enumerate(FakeRun(requests=9, failures=4).events())
    ]
    (failure,) = summarize(Tally.of(events))["failures"]
    assert failure["count"] == 4
    assert failure["reason"].startswith("r00000: no progress for 30.")


def test_mean_hand_over_legs_sum_to_the_mean_ttft() -> None:
    summary = summarize(Tally.of(FakeRun().events()))
    legs = [summary["handover"]["all"][leg]["mean"] for leg in LEGS]
    assert sum(legs) == pytest.approx(summary["mean_ttft_ms"])


def test_a_replayed_run_sums_up_to_the_same(tmp_path: Path) -> None:
    ledger = Ledger(lambda: 0.0, 0.0)
    with EventWriter(tmp_path / "events.jsonl") as write:
        ledger.subscribe(write)
        for event in FakeRun(requests=60, failures=3).events():
            ledger.record(event)
    live, replayed = summarize(ledger.tally), summarize(Tally.of(read_events(tmp_path / "events.jsonl")))
    assert live == replayed


def test_what_was_carried_before_the_workload_does_not_count() -> None:
    events = FakeRun().events()
    wan = summarize(Tally.of(events))["links"]["wan"]
    first, *_, last = (
        event for event in events if isinstance(event, ev.LinkSampled) and event.source == "east"
    )
    carried = last.bytes_total - first.bytes_total - first.backlog_bytes
    assert wan["directions"]["east"]["bytes"] == carried
    assert wan["bytes"] == sum(direction["bytes"] for direction in wan["directions"].values())
    assert wan["busiest_source"] == "east"
    assert 0 < wan["utilization"] < 1


def test_what_was_still_queued_as_the_workload_started_does_not_count() -> None:
    events = FakeRun().events()
    queued = [
        replace(e, backlog_bytes=5000) if isinstance(e, ev.LinkSampled) and e.at_s < 8 else e for e in events
    ]
    clean, after = (
        summarize(Tally.of(stream))["links"]["wan"]["directions"]["west"] for stream in (events, queued)
    )
    was = next(e.backlog_bytes for e in events if isinstance(e, ev.LinkSampled) and e.source == "west")
    assert after["bytes"] == clean["bytes"] + was - 5000


def test_an_empty_run_sums_up_without_nan(tmp_path: Path) -> None:
    summary = summarize(Tally())
    assert summary["mean_ttft_ms"] is None
    assert summary["request_throughput"] is None
    write_summary(tmp_path / "summary.json", summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


@settings(max_examples=60)
@given(st.data())
def test_no_stream_however_torn_breaks_the_account(data: st.DataObject) -> None:
    events = FakeRun(requests=4, failures=1).events()
    kept = data.draw(st.lists(st.sampled_from(events), max_size=80))
    tally = Tally.of(kept)
    assert tally.submitted == tally.completed + tally.failed + tally.in_flight
    text = json.dumps(summarize(tally), allow_nan=False)
    assert "Infinity" not in text


def test_every_prefix_of_a_run_keeps_the_account() -> None:
    tally = Tally()
    for event in FakeRun(requests=20, failures=2).events():
        tally.fold(event)
        assert tally.submitted == tally.completed + tally.failed + tally.in_flight
        assert min(tally.completed, tally.failed, tally.in_flight) >= 0


def test_requests_are_written_one_a_line_with_their_ledger(tmp_path: Path) -> None:
    tally = Tally.of(FakeRun(requests=10, failures=1).events())
    write_requests(tmp_path / "requests.jsonl", tally.requests.values())
    rows = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    for row in rows:
        if row["outcome"] == "completed":
            assert math.fsum(row["handover"].values()) == pytest.approx(row["ttft_ms"])
        assert row["violations"] == []


def test_gaps_are_let_go_once_a_request_has_ended() -> None:
    tally = Tally.of(FakeRun(requests=20).events())
    assert all(len(record.gaps_s) == 0 for record in tally.requests.values())
    assert len(tally.itl_ms) == sum(r.emitted_tokens - 1 for r in tally.requests.values())


def test_subscribers_see_a_tally_that_holds_the_event_already() -> None:
    ledger, seen = Ledger(lambda: 12.5, 10.0), []
    stop = ledger.subscribe(lambda event: seen.append((event.at_s, ledger.tally.submitted)))
    ledger.record(ev.RequestSubmitted(at_s=ledger.now(), request_id="a", prompt_tokens=1, output_tokens=1))
    stop()
    ledger.record(ev.RequestSubmitted(at_s=3.0, request_id="b", prompt_tokens=1, output_tokens=1))
    assert seen == [(2.5, 1)]
    assert ledger.at(11.0) == 1.0


# -- fidelity ----------------------------------------------------------------------------------


def _altered(change: object) -> Tally:
    events = FakeRun(requests=20).events()
    return Tally.of(change(event) or event for event in events)  # type: ignore[operator]


def test_a_run_without_a_reason_for_doubt_is_valid() -> None:
    assert judge(Tally.of(FakeRun().events())).reasons == ()
    assert judge(Tally.of(FakeRun().events())).verdict == "VALID"


SUSPECT = {
    "CPUs were 99% busy on average (tolerance 95%)": lambda e: (
        replace(e, cpu_fraction=0.99) if isinstance(e, ev.MachineSampled) else None
    ),
    "timer lag of the controller was 50ms (tolerance 20ms)": lambda e: (
        replace(e, timer_lag_s=0.05) if isinstance(e, ev.MachineSampled) else None
    ),
    "the shaper waited for a CPU 3.0% of the time (tolerance 2.0%)": lambda e: (
        replace(e, waited_s=0.03 * e.at_s) if isinstance(e, ev.ShaperSampled) else None
    ),
    "the shaper took 99% of a CPU (tolerance 95%)": lambda e: (
        replace(e, cpu_s=0.99 * e.at_s) if isinstance(e, ev.ShaperSampled) else None
    ),
    "1 engine waited for a CPU, west-d0 60% of the time (tolerance 25%)": lambda e: (
        replace(e, waited_s=0.6 * e.at_s)
        if isinstance(e, ev.EngineSampled) and e.engine == "west-d0" else None
    ),
    "goodput 80Mbit": lambda e: (
        replace(e, reasons=("goodput 80Mbit of 100Mbit",)) if isinstance(e, ev.LinkMeasured) else None
    ),
    "came 1.01s late": lambda e: replace(e, due_s=e.due_s - 1) if isinstance(e, ev.LinkChanged) else None,
    "stamps out of order by more than 2ms": lambda e: (
        replace(e, at_s=e.at_s - 0.01) if isinstance(e, ev.CacheRestored) else None
    ),
    "tokens reached the client together": lambda e: (
        replace(e, at_s=math.floor(5 * e.at_s + 1) / 5) if isinstance(e, ev.TokensEmitted) else None
    ),
    "was never measured": lambda e: (
        ev.Noted(at_s=0, level="info", text="") if isinstance(e, ev.LinkMeasured) else None
    ),
    "only 0 of 20 outputs were verified": lambda e: (
        ev.Noted(at_s=0, level="info", text="") if isinstance(e, ev.RequestVerified) else None
    ),
    "was configured": lambda e: (
        replace(e, configured_bps=1e6) if isinstance(e, ev.LinkSampled) else None
    ),
}  # fmt: skip
INVALID = {
    "20 of 20 verified outputs differ": lambda e: (
        replace(e, outcome="mismatch") if isinstance(e, ev.RequestVerified) else None
    ),
    "20 requests neither completed nor failed": lambda e: (
        ev.Noted(at_s=0, level="info", text="") if isinstance(e, ev.RequestFinished) else None
    ),
    "lost KVCache bytes": lambda e: (
        replace(e, received_bytes=1) if isinstance(e, ev.TransferFinished) else None
    ),
    "went around the shaped link": lambda e: (
        replace(e, bytes_total=1_000_000) if isinstance(e, ev.LinkSampled) else None
    ),
    "badly accounted for": lambda e: (
        replace(e, output_tokens=99) if isinstance(e, ev.RequestSubmitted) else None
    ),
}


@pytest.mark.parametrize("words", SUSPECT)
def test_strain_makes_a_run_suspect(words: str) -> None:
    fidelity = judge(_altered(SUSPECT[words]))
    assert any(words in reason for reason in fidelity.reasons)
    assert fidelity.verdict == "SUSPECT"


@pytest.mark.parametrize("words", INVALID)
def test_a_broken_law_makes_a_run_invalid(words: str) -> None:
    fidelity = judge(_altered(INVALID[words]))
    assert any(words in reason for reason in fidelity.reasons)
    assert fidelity.verdict == "INVALID"


def test_a_dead_engine_makes_a_run_suspect() -> None:
    died = ev.EngineDied(at_s=20.0, engine="west-d0", exit_status="signal 9", last_words="...")
    tally = Tally.of([*FakeRun().events(), died])
    assert judge(tally).verdict == "SUSPECT"
    assert summarize(tally)["engines"]["west-d0"]["died"] == "signal 9"


def test_retransmissions_count_as_drops_do_for_the_workload_only() -> None:
    events = FakeRun().events()
    ways = summarize(Tally.of(events))["links"]["wan"]["directions"]
    assert {way["retransmitted"] for way in ways.values()} == {4}  # 7 of 11 were before it
    uncounted = [replace(e, retransmitted_total=None) if isinstance(e, ev.LinkSampled) else e for e in events]
    assert summarize(Tally.of(uncounted))["links"]["wan"]["directions"]["east"]["retransmitted"] is None


def test_what_the_processes_got_of_the_cpus_is_told_for_the_workload_only() -> None:
    events = FakeRun().events()
    before = ev.ShaperSampled(at_s=7.0, cpu_s=0.7, waited_s=0.007)
    after = ev.ShaperSampled(at_s=1e6, cpu_s=9e9, waited_s=9e9)
    summary = summarize(Tally.of([before, *events, after]))
    assert summary["shaper_process"] == {
        "cpu_fraction": pytest.approx(0.1), "wait_fraction": pytest.approx(0.001)
    }  # fmt: skip
    assert summary["engines"]["west-d0"]["cpu_fraction"] == pytest.approx(0.5)
    assert summary["engines"]["west-d0"]["wait_fraction"] == pytest.approx(0.05)
    kernel_shaped = [e for e in events if not isinstance(e, ev.ShaperSampled)]
    assert summarize(Tally.of(kernel_shaped))["shaper_process"]["wait_fraction"] is None


def test_samples_after_the_workload_do_not_dilute_it() -> None:
    events = FakeRun().events()
    idle = [replace(e, at_s=1000.0 + e.at_s) for e in events if isinstance(e, ev.EngineSampled)]
    early, late = Tally.of(events), Tally.of([*events, *random.Random(0).sample(idle, 20)])
    for name in early.engines:
        before, after = (tally.engines[name].busy_fraction(8.0) for tally in (early, late))
        assert after == pytest.approx(before) or after < before  # one closing sample is let in


@pytest.mark.parametrize(("mode", "duration_s"), [("emulate", 1000.0), ("simulate", 1000.0), ("serve", 5.0)])
def test_what_drains_is_no_part_of_the_steady_state(mode: str, duration_s: float) -> None:
    """Also where the arrivals end before their duration: after so many, by hand; or do not end with it."""
    events = [
        replace(e, mode=mode, duration_s=duration_s) if isinstance(e, ev.RunStarted) else e
        for e in FakeRun().events()
    ]
    drains_s = next(e.at_s for e in events if isinstance(e, ev.PhaseChanged) and e.name == "draining")
    ends = [e.at_s for e in events if isinstance(e, ev.RequestFinished)]
    steady = summarize(Tally.of(events))["steady"]
    assert (steady["since"], steady["until"]) == (8.0, drains_s)
    assert steady["completed"] == sum(at_s < drains_s for at_s in ends) < len(ends)
    retired: list[object] = []
    streamed = Tally(retired.append)
    for event in events:
        if not isinstance(event, ev.RequestVerified):
            streamed.fold(event)
    assert summarize(streamed)["steady"] == steady


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk to write to")
def test_a_full_disk_is_told_in_words() -> None:
    says = "/dev/full: cannot be written: No space left"
    with pytest.raises(LabError, match=says):
        _write_events(Path("/dev/full"))
    with pytest.raises(LabError, match=says):
        write_requests(Path("/dev/full"), Tally.of(FakeRun().events()).requests.values())


def _write_events(path: Path) -> None:
    with EventWriter(path) as writer:
        for event in FakeRun().events():
            writer(event)
