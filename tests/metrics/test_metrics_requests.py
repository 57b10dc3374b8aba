from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_run import FakeRun
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.handover import check, handover
from prfaas_lab.metrics.requests import RequestRecord

STAGES = ("submitted", "prefill", "prefilled", "transfer", "transferred", "restored", "first")


def record_of(*events: ev.RequestEvent) -> RequestRecord:
    record = RequestRecord(id="r")
    for event in events:
        record.fold(event)
    return record


def a_request(**at: float) -> list[ev.RequestEvent]:
    """One offloaded request of two tokens; stamps in seconds by name override the usual ones."""
    t = {
        "submitted": 1.0, "routed": 1.01, "prefill": 1.1, "transfer": 1.2, "prefilled": 1.5,
        "transferred": 1.7, "restored": 1.71, "first": 1.75, "second": 1.80, "done": 1.80,
    } | at  # fmt: skip
    name = {"request_id": "r"}
    way = {"source": "east-p0", "destination": "west-d0"}
    return [
        ev.RequestSubmitted(at_s=t["submitted"], prompt_tokens=900, output_tokens=2, **name),
        ev.RequestRouted(
            at_s=t["routed"], prefill="east-p0", decode="west-d0", offloaded=True, uncached_tokens=900,
            threshold_tokens=512, reason="long", **name,
        ),
        ev.PrefillStarted(at_s=t["prefill"], engine="east-p0", **name),
        ev.TransferStarted(at_s=t["transfer"], **way, **name),
        ev.PrefillFinished(at_s=t["prefilled"], engine="east-p0", computed_tokens=900, **name),
        ev.TransferFinished(at_s=t["transferred"], **way, sent_bytes=9, received_bytes=9, **name),
        ev.CacheRestored(at_s=t["restored"], engine="west-d0", **name),
        ev.TokensEmitted(at_s=t["first"], engine="west-d0", count=1, **name),
        ev.TokensEmitted(at_s=t["second"], engine="west-d0", count=1, **name),
        ev.RequestFinished(at_s=t["done"], **name),
    ]  # fmt: skip


def test_latencies_are_vllms() -> None:
    record = record_of(*a_request())
    assert record.ttft_s == pytest.approx(0.75)
    assert record.e2el_s == pytest.approx(0.80)
    assert record.tpot_s == pytest.approx(0.05)
    assert list(record.gaps_s) == pytest.approx([0.05])


def test_a_single_token_has_no_time_per_further_token() -> None:
    events = [
        event for event in a_request() if not (isinstance(event, ev.TokensEmitted) and event.at_s > 1.75)
    ]
    assert record_of(*events).tpot_s is None


def test_each_leg_is_what_it_adds_after_the_one_before() -> None:
    legs = handover(record_of(*a_request()))
    assert legs is not None
    assert legs.queue_ms == pytest.approx(100)
    assert legs.prefill_ms == pytest.approx(400)
    assert legs.first_byte_ms == pytest.approx(0)  # it left while prefill still computed
    assert legs.wire_ms == pytest.approx(200)
    assert legs.restore_ms == pytest.approx(10)
    assert legs.first_token_ms == pytest.approx(40)


@given(st.fixed_dictionaries({stage: st.floats(0, 100) for stage in STAGES}))
def test_the_legs_sum_to_the_ttft_whatever_the_stamps(stamps: dict[str, float]) -> None:
    record = record_of(*a_request(**stamps))
    legs = handover(record)
    assert legs is not None
    assert record.ttft_s is not None
    assert legs.ttft_ms == pytest.approx(1e3 * record.ttft_s, abs=1e-6)


@given(st.sets(st.sampled_from([ev.PrefillStarted, ev.PrefillFinished, ev.TransferStarted,
                                ev.TransferFinished, ev.CacheRestored])))  # fmt: skip
def test_a_stamp_that_never_came_leaves_the_sum_alone(missing: set[type]) -> None:
    record = record_of(*(event for event in a_request() if type(event) not in missing))
    legs = handover(record)
    assert legs is not None
    assert legs.ttft_ms == pytest.approx(750)
    assert min(legs.queue_ms, legs.prefill_ms, legs.wire_ms) >= 0


def test_a_request_without_its_first_token_has_no_ledger_yet() -> None:
    assert handover(record_of(*a_request()[:6])) is None


@given(st.permutations(a_request()[:7]))
def test_reports_that_overtake_each_other_give_the_same_record(events: list[ev.RequestEvent]) -> None:
    assert record_of(*events, *a_request()[7:]) == record_of(*a_request())


def test_a_good_request_breaks_no_law() -> None:
    assert check(record_of(*a_request())) == []


def test_skew_below_two_milliseconds_is_let_pass() -> None:
    assert check(record_of(*a_request(restored=1.6985))) == []


@pytest.mark.parametrize(
    ("stamps", "words"),
    [
        ({"restored": 1.69}, "restored 10.0 ms before transfer finished"),
        ({"prefill": 1.0}, "prefill started 10.0 ms before routed"),
        ({"transferred": 1.4}, "transfer finished 100.0 ms before prefill finished"),
        ({"first": 1.70}, "first token 10.0 ms before restored"),
        ({"done": 1.74}, "ended 60.0 ms before last token"),
        ({"submitted": 1.2}, "routed 190.0 ms before submitted"),
    ],
)
def test_a_stamp_out_of_order_is_told_with_its_figure(stamps: dict[str, float], words: str) -> None:
    assert any(words in text for text in check(record_of(*a_request(**stamps))))


def _lose_bytes(event: ev.RequestEvent) -> ev.RequestEvent:
    return replace(event, received_bytes=8) if isinstance(event, ev.TransferFinished) else event


def _want_more(event: ev.RequestEvent) -> ev.RequestEvent:
    return replace(event, output_tokens=3) if isinstance(event, ev.RequestSubmitted) else event


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_lose_bytes, "9 bytes sent, 8 received"), (_want_more, "completed with 2 of 3 tokens")],
)
def test_lost_bytes_and_tokens_are_told(
    spoil: Callable[[ev.RequestEvent], ev.RequestEvent], words: str
) -> None:
    assert any(words in text for text in check(record_of(*map(spoil, a_request()))))


def test_a_request_ends_in_exactly_one_bucket() -> None:
    failed = ev.RequestFailed(at_s=2.0, request_id="r", stage="decode", reason="late")
    record = record_of(*a_request(), failed)
    assert record.outcome == "completed"
    assert check(record) == ["r: ended 2 times"]


def test_a_request_out_of_nowhere_is_told() -> None:
    assert "was submitted 0 times" in check(record_of(*a_request()[1:]))[0]


def test_the_fake_run_obeys_the_laws() -> None:
    records: dict[str, RequestRecord] = {}
    for event in FakeRun(requests=30, failures=2).events():
        if isinstance(event, ev.RequestEvent):
            records.setdefault(event.request_id, RequestRecord(id=event.request_id)).fold(event)
    assert [text for record in records.values() for text in check(record)] == []
