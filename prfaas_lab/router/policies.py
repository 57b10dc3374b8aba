"""Where a request is prefilled and decoded: `(Request, View, Plan) -> Placement`, by name.

A policy is pure. It decides over what the view shows and never waits; what a placement costs shows
later in the ledger. Engines that are not alive and paths that are not up do not exist for it.
"""

from __future__ import annotations

import difflib

from prfaas_lab.errors import LabError
from prfaas_lab.router.placement_cache import cache_aware
from prfaas_lab.router.values import (
    EngineView,
    PathView,
    Placement,
    Plan,
    Route,
    View,
    decode_rank,
    prefill_rank,
)
from prfaas_lab.workload.request import Request


class NoPlacement(LabError):
    """No live engine, or no path between live engines, can serve the request."""


def threshold(request: Request, view: View, plan: Plan) -> Placement:
    """PrfaaS for a long uncached remainder, the local cluster for a short one (paper, 3.4).

    l_total - l_pd > t goes to PrfaaS. When the preferred side has no live engine, or no path leads
    from it, the other side serves.
    """
    decode = _decode_engine(view)
    uncached = _uncached_tokens(request, view, decode.datacenter)
    limit = plan.threshold_tokens
    if limit is None:
        raise NoPlacement(
            "the threshold policy has no threshold", remedy="set policy.threshold in the scenario"
        )
    long = uncached > limit
    relation = f"{uncached} uncached tokens {'>' if long else '<='} threshold {limit}"
    return _place(request, view, decode, prefer_remote=long, reason=relation)


def local_only(request: Request, view: View, plan: Plan) -> Placement:
    """Every prefill in the decode engine's own datacenter: homogeneous PD disaggregation."""
    decode = _decode_engine(view, with_prefill=True)
    engine = view.idlest("prefill", decode.datacenter)
    if engine is None:
        raise NoPlacement(
            f"no live prefill engine in {decode.datacenter}",
            where="policy local-only",
            remedy="give a local datacenter a prefill engine, or choose another policy",
        )
    return _placement(request, view, engine, decode, "local-only prefills at home")


def remote_all(request: Request, view: View, plan: Plan) -> Placement:
    """Every prefill on PrfaaS: the paper's naive heterogeneous baseline. Never falls back."""
    decode = _decode_engine(view)
    engine = _remote_prefill(view, decode.datacenter)
    if engine is None:
        raise NoPlacement(
            f"no live PrfaaS engine with a path to {decode.datacenter}",
            where="policy remote-all",
            remedy="give the topology a prfaas datacenter, or choose another policy",
        )
    return _placement(request, view, engine, decode, "remote-all offloads every prefill")


POLICIES: dict[str, Route] = {
    "threshold": threshold,
    "local-only": local_only,
    "remote-all": remote_all,
    "cache-aware": cache_aware(threshold),
}


def policy(name: str) -> Route:
    """The policy of that name. Raises LabError naming the nearest one."""
    if name in POLICIES:
        return POLICIES[name]
    near = difflib.get_close_matches(name, POLICIES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"have: {', '.join(POLICIES)}"
    error = LabError(f"there is no policy {name!r}", where="policy.name", remedy=hint)
    error.exit_code = 2
    raise error


def _place(
    request: Request, view: View, decode: EngineView, *, prefer_remote: bool, reason: str
) -> Placement:
    local = view.idlest("prefill", decode.datacenter)
    remote = _remote_prefill(view, decode.datacenter)
    first, second = (remote, local) if prefer_remote else (local, remote)
    if first is not None:
        return _placement(request, view, first, decode, reason)
    if second is not None:
        side = "PrfaaS" if prefer_remote else "local"
        return _placement(request, view, second, decode, f"{reason}, but no {side} engine can serve")
    raise NoPlacement("no live prefill engine can reach the decode engine", where=decode.name)


def _placement(
    request: Request, view: View, prefill: EngineView, decode: EngineView, reason: str
) -> Placement:
    return Placement(
        prefill=prefill.name,
        decode=decode.name,
        offloaded=prefill.datacenter != decode.datacenter,
        uncached_tokens=_uncached_tokens(request, view, prefill.datacenter),
        reason=reason,
    )


def _uncached_tokens(request: Request, view: View, datacenter: str) -> int:
    cached = next((dc.prefix_tokens for dc in view.datacenters if dc.name == datacenter), 0)
    return request.prompt_tokens - cached


def _decode_engine(view: View, *, with_prefill: bool = False) -> EngineView:
    engines = [e for dc in view.datacenters if (e := view.idlest("decode", dc.name)) is not None]
    if with_prefill:
        engines = [e for e in engines if view.idlest("prefill", e.datacenter) is not None] or engines
    if not engines:
        raise NoPlacement("no live decode engine", remedy="see the engines' logs in the run's directory")
    return min(engines, key=decode_rank)


def _remote_prefill(view: View, datacenter: str) -> EngineView | None:
    """The idlest live PrfaaS engine with a path to a datacenter."""
    reachable = {p.source for p in view.paths if p.destination == datacenter and _passable(p)}
    sites = [dc.name for dc in view.datacenters if dc.role == "prfaas" and dc.name in reachable]
    engines = [e for name in sites if (e := view.idlest("prefill", name)) is not None]
    return min(engines, key=prefill_rank, default=None)


def _passable(path: PathView) -> bool:
    return path.up and path.rate_bps != 0
