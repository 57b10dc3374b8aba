"""The hand-over ledger of a request: where its TTFT went; and the laws its stamps must obey."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter, le
from typing import Literal, NamedTuple

from msgspec import Struct

from prfaas_lab.metrics.requests import RequestRecord

SKEW_S = 0.002
"""Stamps from different processes on one clock may lie this far out of order."""


class Handover(NamedTuple):
    """Milliseconds of each leg from submission to first token; they sum to the TTFT.

    The transfer is pipelined with the prefill, so a leg is what it adds after the one before:
    t0 submitted; t1 prefill started; t2 prefill finished; t3 = max(t2, transfer started);
    t4 = max(t3, transfer finished); t5 = max(t4, cache restored); t6 first token at the client.
    A stamp that never came (nothing to transfer) takes the time of the one before, and its leg
    is 0. `queue` holds everything before prefill starts, routing too.
    """

    queue_ms: float
    prefill_ms: float
    first_byte_ms: float
    wire_ms: float
    restore_ms: float
    first_token_ms: float

    @property
    def ttft_ms(self) -> float:
        return math.fsum(self)


LEGS = Handover._fields


def handover(record: RequestRecord) -> Handover | None:
    """The legs of a request; None before its first token."""
    t0, t6 = record.submitted_s, record.first_token_s
    if t0 is None or t6 is None:
        return None
    t1, t2 = record.prefill_started_s, record.prefill_finished_s
    sent, received, t5 = record.transfer_started_s, record.transfer_finished_s, record.restored_s
    t1 = t0 if t1 is None else t1
    t2 = t1 if t2 is None else t2
    t3 = t2 if sent is None or sent < t2 else sent
    t4 = t3 if received is None or received < t3 else received
    t5 = t4 if t5 is None or t5 < t4 else t5
    return Handover(
        (t1 - t0) * 1e3, (t2 - t1) * 1e3, (t3 - t2) * 1e3, (t4 - t3) * 1e3, (t5 - t4) * 1e3, (t6 - t5) * 1e3
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A law that a request broke. `order`: of its stamps; `bytes`: sent is not received; `account`:
    it ended twice, out of nowhere, or with the wrong number of tokens."""

    kind: Literal["order", "bytes", "account"]
    text: str


_ORDER = (
    ("submitted_s", "routed_s"),
    ("routed_s", "prefill_started_s"),
    ("prefill_started_s", "prefill_finished_s"),
    ("routed_s", "transfer_started_s"),
    ("transfer_started_s", "transfer_finished_s"),
    ("prefill_finished_s", "transfer_finished_s"),
    ("transfer_finished_s", "restored_s"),
    ("restored_s", "first_token_s"),
    ("prefill_finished_s", "first_token_s"),
    ("first_token_s", "ended_s"),
    ("last_token_s", "ended_s"),
)


def check(record: RequestRecord) -> list[str]:
    """The laws this request broke, in words."""
    return [violation.text for violation in violations(record)]


def violations(record: RequestRecord) -> list[Violation]:
    """The laws this request broke."""
    return [*_out_of_order(record), *_bytes_lost(record), *_miscounted(record)]


_earlier = attrgetter(*(earlier for earlier, _ in _ORDER))
_later = attrgetter(*(later for _, later in _ORDER))


def _out_of_order(record: RequestRecord) -> list[Violation]:
    if record.outcome == "failed":
        return []  # an attempt that failed may leave its stamps anywhere
    firsts, seconds = _earlier(record), _later(record)
    try:
        in_order = all(map(le, firsts, seconds))
    except TypeError:  # some never came
        in_order = False
    if in_order:
        return []
    found = []
    for (earlier, later), first, second in zip(_ORDER, firsts, seconds, strict=True):
        if first is not None and second is not None and second < first - SKEW_S:
            late_ms = 1e3 * (first - second)
            words = f"{_words(later)} {late_ms:.1f} ms before {_words(earlier)}"
            found.append(Violation(kind="order", text=f"{record.id}: {words}"))
    return found


def _words(stamp: str) -> str:
    return stamp.removesuffix("_s").replace("_", " ")


def _bytes_lost(record: RequestRecord) -> list[Violation]:
    if record.sent_bytes == record.received_bytes:
        return []
    text = f"{record.id}: {record.sent_bytes} bytes sent, {record.received_bytes} received"
    return [Violation(kind="bytes", text=text)]


def _miscounted(record: RequestRecord) -> list[Violation]:
    faults = []
    if record.submissions != 1:
        faults.append(f"was submitted {record.submissions} times")
    if record.ends > 1:
        faults.append(f"ended {record.ends} times")
    fewest = 1 if record.finish == "stop" else record.output_tokens
    if record.outcome == "completed" and not fewest <= record.emitted_tokens <= record.output_tokens:
        faults.append(f"completed with {record.emitted_tokens} of {record.output_tokens} tokens")
    return [Violation(kind="account", text=f"{record.id}: {fault}") for fault in faults]


class Account(Struct, frozen=True, gc=False):
    """A request with what follows from its stamps, reckoned once."""

    record: RequestRecord
    ttft_ms: float | None
    tpot_ms: float | None
    e2el_ms: float | None
    legs: Handover | None
    violations: list[Violation]

    @classmethod
    def of(cls, record: RequestRecord) -> Account:
        ttft_s, tpot_s, e2el_s = record.latencies_s()
        return cls(
            record,
            None if ttft_s is None else 1e3 * ttft_s,
            None if tpot_s is None else 1e3 * tpot_s,
            None if e2el_s is None else 1e3 * e2el_s,
            handover(record),
            violations(record),
        )
