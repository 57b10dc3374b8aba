"""What policies are made of: who can serve, who is idlest, and the placement that results."""

from __future__ import annotations

from prfaas_lab.errors import LabError
from prfaas_lab.router.values import EngineView, PathView, Placement, View, decode_rank, prefill_rank
from prfaas_lab.workload.request import Request


class NoPlacement(LabError):
    """No live engine, or no path between live engines, can serve the request."""


def place(request: Request, view: View, decode: EngineView, *, prefer_remote: bool, reason: str) -> Placement:
    """On the idlest engine of the preferred side; on the other side when that has none that can serve."""
    first, second = (remote_prefill, local_prefill) if prefer_remote else (local_prefill, remote_prefill)
    if (engine := first(view, decode.datacenter)) is not None:
        return placed(request, view, engine, decode, reason)
    if (engine := second(view, decode.datacenter)) is not None:
        side = "PrfaaS" if prefer_remote else "local"
        return placed(request, view, engine, decode, f"{reason}, but no {side} engine can serve")
    raise NoPlacement("no live prefill engine can reach the decode engine", where=decode.name)


def placed(request: Request, view: View, prefill: EngineView, decode: EngineView, reason: str) -> Placement:
    """The placement on these two engines."""
    return Placement(
        prefill=prefill.name,
        decode=decode.name,
        offloaded=prefill.datacenter != decode.datacenter,
        uncached_tokens=uncached_tokens(request, view, prefill.datacenter),
        reason=reason,
    )


def uncached_tokens(request: Request, view: View, datacenter: str) -> int:
    """What a datacenter would have to compute of a prompt."""
    for site in view.datacenters:
        if site.name == datacenter:
            return request.prompt_tokens - site.prefix_tokens
    return request.prompt_tokens


def decode_engine(view: View, *, with_prefill: bool = False) -> EngineView:
    """The decode engine with most room; `with_prefill`: where prefill engines are too, if anywhere."""
    engines = [e for dc in view.datacenters if (e := view.idlest("decode", dc.name)) is not None]
    if with_prefill:
        engines = [e for e in engines if view.idlest("prefill", e.datacenter) is not None] or engines
    if not engines:
        raise NoPlacement("no live decode engine", remedy="see the engines' logs in the run's directory")
    return min(engines, key=decode_rank)


def local_prefill(view: View, datacenter: str) -> EngineView | None:
    """The idlest live prefill engine of a datacenter."""
    return view.idlest("prefill", datacenter)


def remote_prefill(view: View, datacenter: str) -> EngineView | None:
    """The idlest live PrfaaS engine with a path to a datacenter."""
    return min((engine for engine, _ in remote_choices(view, datacenter)), key=prefill_rank, default=None)


def remote_choices(view: View, datacenter: str) -> list[tuple[EngineView, PathView]]:
    """The idlest live engine of every PrfaaS datacenter with a path to a datacenter, and that path."""
    prfaas = {dc.name for dc in view.datacenters if dc.role == "prfaas"}
    paths = [p for p in view.paths if p.destination == datacenter and p.source in prfaas and _passable(p)]
    return [(e, path) for path in paths if (e := view.idlest("prefill", path.source)) is not None]


def _passable(path: PathView) -> bool:
    return path.up and path.rate_bps != 0
