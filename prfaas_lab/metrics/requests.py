"""What became of one request: its stamps and counts, folded from its events.

The order of arrival does not matter to a fold, except among tokens: engines stamp with their own
reading of the machine's one CLOCK_MONOTONIC, and their reports may overtake each other.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct, field

from prfaas_lab.metrics import events as ev


class RequestRecord(Struct, kw_only=True, gc=False):
    """Times are seconds of the run, None until they come. When something happens twice (a retried
    prefill), the last time counts, except that the first token stays the first."""

    id: str
    outcome: Literal["in flight", "completed", "failed"] = "in flight"
    submissions: int = 0
    ends: int = 0
    """How often the request was submitted and ended: once each, or it is a fault of ours."""

    submitted_s: float | None = None
    routed_s: float | None = None
    prefill_started_s: float | None = None
    prefill_finished_s: float | None = None
    transfer_started_s: float | None = None
    transfer_finished_s: float | None = None
    restored_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    ended_s: float | None = None

    prompt_tokens: int = 0
    output_tokens: int = 0
    emitted_tokens: int = 0
    computed_tokens: int | None = None
    cached_tokens: int | None = None

    prefill: str | None = None
    decode: str | None = None
    offloaded: bool = False
    uncached_tokens: int | None = None
    threshold_tokens: int | None = None
    reason: str = ""

    source: str | None = None
    destination: str | None = None
    sent_bytes: int = 0
    received_bytes: int = 0
    wire_bytes: int = 0
    """What they took on the wire, compressed."""
    retried_chunks: int = 0

    finish: str = ""
    """Why a completed output ended: `length` or `stop`."""
    failure_stage: str = ""
    failure_reason: str = ""
    verified: str | None = None
    verified_detail: str = ""

    gaps_s: array[float] = field(default_factory=lambda: array("f"))
    """Times between tokens; taken away by the tally once the request has ended."""

    def fold(self, event: ev.RequestEvent) -> None:
        """Take in one event of this request."""
        STAMPS[type(event)](self, event)

    @property
    def ttft_s(self) -> float | None:
        """From the request sent to its first token."""
        return self.latencies_s()[0]

    @property
    def tpot_s(self) -> float | None:
        """(E2E - TTFT) / (n - 1); None for a single token, which has no time per further token."""
        return self.latencies_s()[1]

    @property
    def e2el_s(self) -> float | None:
        """From the request sent to its last token."""
        return self.latencies_s()[2]

    def latencies_s(self) -> tuple[float | None, float | None, float | None]:
        """TTFT, TPOT and E2E latency."""
        sent_s, first_s, last_s = self.submitted_s, self.first_token_s, self.last_token_s
        if sent_s is None or first_s is None or last_s is None:  # the first token is the last until another
            return None, None, None
        ttft_s, e2el_s, more = first_s - sent_s, last_s - sent_s, self.emitted_tokens - 1
        return ttft_s, (e2el_s - ttft_s) / more if more > 0 else None, e2el_s


def cause(reason: str) -> str:
    """What failures for the same cause share: their reasons without ids, times and counts."""
    return re.sub(r"\d+(?:\.\d+)?", "#", reason)


def _submitted(record: RequestRecord, event: ev.RequestSubmitted) -> None:
    record.submitted_s = event.at_s
    record.submissions += 1
    record.prompt_tokens, record.output_tokens = event.prompt_tokens, event.output_tokens


def _routed(record: RequestRecord, event: ev.RequestRouted) -> None:
    record.routed_s = event.at_s
    record.prefill, record.decode, record.offloaded = event.prefill, event.decode, event.offloaded
    record.uncached_tokens, record.threshold_tokens = event.uncached_tokens, event.threshold_tokens
    record.reason = event.reason


def _moved(record: RequestRecord, event: ev.RequestMoved) -> None:
    record.prefill, record.decode = event.prefill, event.decode


def _prefill_started(record: RequestRecord, event: ev.PrefillStarted) -> None:
    record.prefill_started_s = event.at_s


def _prefill_finished(record: RequestRecord, event: ev.PrefillFinished) -> None:
    record.prefill_finished_s = event.at_s
    record.computed_tokens, record.cached_tokens = event.computed_tokens, event.cached_tokens


def _transfer_started(record: RequestRecord, event: ev.TransferStarted) -> None:
    record.transfer_started_s = event.at_s
    record.source, record.destination = event.source, event.destination


def _transfer_finished(record: RequestRecord, event: ev.TransferFinished) -> None:
    record.transfer_finished_s = event.at_s
    record.source, record.destination = event.source, event.destination
    record.sent_bytes, record.received_bytes = event.sent_bytes, event.received_bytes
    record.wire_bytes = event.received_bytes if event.wire_bytes is None else event.wire_bytes
    record.retried_chunks = event.retried_chunks


def _restored(record: RequestRecord, event: ev.CacheRestored) -> None:
    record.restored_s = event.at_s


def _tokens(record: RequestRecord, event: ev.TokensEmitted) -> None:
    if record.last_token_s is None:
        record.first_token_s = event.at_s
    else:
        record.gaps_s.append((event.at_s - record.last_token_s) / event.count)
    record.last_token_s = event.at_s
    record.emitted_tokens += event.count


def _finished(record: RequestRecord, event: ev.RequestFinished) -> None:
    record.ends += 1
    if record.ends == 1:
        record.ended_s, record.outcome, record.finish = event.at_s, "completed", event.why


def _failed(record: RequestRecord, event: ev.RequestFailed) -> None:
    record.ends += 1
    if record.ends == 1:
        record.ended_s, record.outcome = event.at_s, "failed"
        record.failure_stage, record.failure_reason = event.stage, event.reason


def _verified(record: RequestRecord, event: ev.RequestVerified) -> None:
    record.verified, record.verified_detail = event.outcome, event.detail


STAMPS: dict[type[ev.RequestEvent], Callable[[RequestRecord, Any], None]] = {
    ev.RequestSubmitted: _submitted,
    ev.RequestRouted: _routed,
    ev.RequestMoved: _moved,
    ev.PrefillStarted: _prefill_started,
    ev.PrefillFinished: _prefill_finished,
    ev.TransferStarted: _transfer_started,
    ev.TransferFinished: _transfer_finished,
    ev.CacheRestored: _restored,
    ev.TokensEmitted: _tokens,
    ev.RequestFinished: _finished,
    ev.RequestFailed: _failed,
    ev.RequestVerified: _verified,
}
"""How each event of a request changes its record."""
