"""What a request's engines told, as events of the ledger: on its clock, with the names that it goes by."""

from __future__ import annotations

from typing import Any

from prfaas_lab.lab.engines import Engine
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.router.values import Placement, Plan, View
from prfaas_lab.workload.request import Request


def record_routed(ledger: Ledger, request: Request, placement: Placement, view: View, plan: Plan) -> None:
    """A policy's decision on this view and plan."""
    ledger.record(
        ev.RequestRouted(
            at_s=ledger.now(),
            request_id=request.id,
            prefill=placement.prefill,
            decode=placement.decode,
            offloaded=placement.offloaded,
            uncached_tokens=placement.uncached_tokens,
            threshold_tokens=plan.threshold_tokens,
            reason=placement.reason,
            prefix_tokens=tuple([(dc.name, dc.prefix_tokens) for dc in view.datacenters if dc.prefix_tokens]),
        )
    )


def record_moved(ledger: Ledger, request: Request, placement: Placement) -> None:
    """Off engines that drain, to these."""
    prefill, decode = placement.prefill, placement.decode
    ledger.record(ev.RequestMoved(at_s=ledger.now(), request_id=request.id, prefill=prefill, decode=decode))


def record_prefill(ledger: Ledger, request: Request, engine: Engine, stage: dict[str, Any]) -> None:
    """The stage `prefilled`: events with the engine's own stamps, and its pace as policies see it."""
    started_s, finished_s = ledger.at(stage["started_at"]), ledger.at(stage["finished_at"])
    engine.computed_tokens += stage["computed_tokens"]
    engine.computing_s += finished_s - started_s
    engine.changed()
    ledger.record(ev.PrefillStarted(at_s=started_s, request_id=request.id, engine=engine.name))
    ledger.record(
        ev.PrefillFinished(
            at_s=finished_s,
            request_id=request.id,
            engine=engine.name,
            computed_tokens=stage["computed_tokens"],
            cached_tokens=stage.get("cached_tokens", 0),
            decoded_tokens=stage.get("decoded_tokens", 0),
        )
    )


def record_restored(ledger: Ledger, request: Request, engine: Engine, stage: dict[str, Any]) -> None:
    """The stage `restored`."""
    at_s = ledger.at(stage["at"])
    ledger.record(ev.CacheRestored(at_s=at_s, request_id=request.id, engine=engine.name))


def record_transfer(
    ledger: Ledger, request: Request, placement: Placement, sent: dict[str, Any], received: dict[str, Any],
    held_bytes: int,
) -> None:  # fmt: skip
    """The stages `sent` and `received`: a transfer as both its ends saw it."""
    ends = {"source": placement.prefill, "destination": placement.decode}
    ledger.record(ev.TransferStarted(at_s=ledger.at(sent["first_byte_at"]), request_id=request.id, **ends))
    ledger.record(
        ev.TransferFinished(
            at_s=ledger.at(received["last_byte_at"]),
            request_id=request.id,
            sent_bytes=sent["bytes"],
            received_bytes=received["bytes"],
            retried_chunks=sent["retried"],
            held_bytes=held_bytes,
            wire_bytes=sent.get("wire_bytes"),
            **ends,
        )
    )


def record_failed(ledger: Ledger, request: Request, stage: str, reason: str) -> None:
    """It ended at this stage of its way."""
    ledger.record(ev.RequestFailed(at_s=ledger.now(), request_id=request.id, stage=stage, reason=reason))
