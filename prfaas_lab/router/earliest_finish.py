"""The policy that weighs what every placement would take now."""

from __future__ import annotations

from collections.abc import Iterator

from prfaas_lab.router.placing import (
    NoPlacement,
    decode_engine,
    placed,
    remote_choices,
    uncached_tokens,
)
from prfaas_lab.router.values import Costs, EngineView, PathView, Placement, Plan, View
from prfaas_lab.workload.request import Request

_LEAST_SHARE = 0.01
"""Of a path's rate: no measurement counts for less."""


def earliest_finish(request: Request, view: View, plan: Plan) -> Placement:
    """Of the idlest prefill engine of every site, the one whose KVCache would lie at the decode engine
    first: its queue, then compute or wire, whichever is longer (they overlap), by the profiles; or the wire
    after all that has still to cross before it, if that is later."""
    if view.costs is None:
        raise NoPlacement(
            "the earliest-finish policy knows no hardware profiles",
            remedy="run paced engines (engine.executor: paced)",
        )
    decode = decode_engine(view)
    estimates = [
        (_finish_s(request, view, view.costs, engine, path), engine.name, engine)
        for engine, path in _candidates(view, decode)
    ]
    if not estimates:
        raise NoPlacement("no live prefill engine can reach the decode engine", where=decode.name)
    finish_s, _, engine = min(estimates, key=lambda estimate: estimate[:2])
    return placed(request, view, engine, decode, f"earliest of {len(estimates)}: in {finish_s:.3g} s")


def _candidates(view: View, decode: EngineView) -> Iterator[tuple[EngineView, PathView | None]]:
    home = decode.datacenter
    if (local := view.idlest("prefill", home)) is not None:
        yield local, None
    yield from remote_choices(view, home)


def _finish_s(request: Request, view: View, costs: Costs, engine: EngineView, path: PathView | None) -> float:
    cached_tokens = request.prompt_tokens - uncached_tokens(request, view, engine.datacenter)
    compute_s = costs.prefill_s(engine.datacenter, request.prompt_tokens, cached_tokens)
    if path is None or not (rate_bps := _rate_bps(path)):
        return engine.queued_s + compute_s
    ahead_s = 8 * view.ahead_bytes(path) / rate_bps
    wire_s = 8 * view.wire_share * costs.kv_bytes(engine.datacenter, request.prompt_tokens) / rate_bps
    return max(engine.queued_s + max(compute_s, wire_s), ahead_s + wire_s) + path.rtt_s / 2


def _rate_bps(path: PathView) -> float | None:
    """What the path gives: as measured while more waits for it than it takes, else as configured."""
    if not path.backlogged or path.available_bps is None:
        return path.rate_bps
    measured_bps = max(path.available_bps, _LEAST_SHARE * (path.rate_bps or 0.0))
    return measured_bps if path.rate_bps is None else min(path.rate_bps, measured_bps)
