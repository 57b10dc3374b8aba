"""Cache-aware placement in both regimes of the paper (3.4), around any policy.

**Scarce** bandwidth: caches count per datacenter, and the policy sees them so: l_total - l_pd against t.
**Abundant** bandwidth: the best cache anywhere counts, l_prefix = max over all; the policy decides on
l_total - l_prefix, and when the engine it chooses holds less, the prefix is copied there first.

The paper leaves the boundary open. Ours, in this order:
1. A path that is down, or more than `ABUNDANT_BELOW` in use, is scarce: a copy would push against the
   KVCache of requests.
   So is one between two engines over which a copy of this prefix has lately come to nothing.
2. Over any other path bandwidth is abundant *for this prefix* when copying what the engine lacks takes
   less than `1 / MARGIN` of the time that computing it would:
   MARGIN * (RTT + bytes / free rate) < lacking tokens * measured seconds per token.
3. Where no copy pays, the decision is taken again as in the scarce regime: nothing is counted as cached
   that would not be there.

Within a datacenter (an RDMA domain in the paper) the same rule holds, and the copy is as good as free.
"""

from __future__ import annotations

from dataclasses import replace

from prfaas_lab.router.values import EngineView, PathView, Placement, Plan, Route, View
from prfaas_lab.workload.request import Request

ABUNDANT_BELOW = 0.5
MARGIN = 1.5


def cache_aware(policy: Route) -> Route:
    """The policy, with prefixes copied where that beats computing them again."""

    def route(request: Request, view: View, plan: Plan) -> Placement:
        scarce = policy(request, view, plan)
        if view.cache is None:
            return scarce
        best = max(
            (e for e in view.engines if e.role == "prefill" and e.alive),
            key=lambda engine: (engine.prefix_tokens, engine.name),
            default=None,
        )
        if best is None or not best.prefix_tokens:
            return scarce
        counted = tuple(replace(dc, prefix_tokens=best.prefix_tokens) for dc in view.datacenters)
        abundant = policy(request, replace(view, datacenters=counted), plan)
        chosen = next(engine for engine in view.engines if engine.name == abundant.prefill)
        if chosen.prefix_tokens >= best.prefix_tokens:
            return abundant
        saved_s = copy_saves_s(best, chosen, view)
        if saved_s is None:
            return scarce
        lacking = best.prefix_tokens - chosen.prefix_tokens
        reason = f"{abundant.reason}; abundant: {lacking} tokens copied from {best.name} save {saved_s:.3f} s"
        return replace(abundant, copy_from=best.name, reason=reason)

    return route


def copy_saves_s(source: EngineView, destination: EngineView, view: View) -> float | None:
    """Seconds that copying saves over computing what `destination` lacks of the request's prefix; None
    where it does not pay, or nobody can tell."""
    path = _path(source.datacenter, destination.datacenter, view)
    speed = destination.prefill_s_per_token
    if view.cache is None or speed is None or path is None:
        return None
    if (source.name, destination.name) in view.cache.futile:
        return None
    if not path.up or path.rate_bps == 0 or path.utilization > ABUNDANT_BELOW:
        return None
    lacking = source.prefix_tokens - destination.prefix_tokens
    size_bytes = lacking * view.cache.token_bytes + view.cache.state_bytes
    wire_s = 8 * size_bytes / (path.rate_bps * (1 - path.utilization)) if path.rate_bps else 0.0
    copy_s, compute_s = path.rtt_s + wire_s, lacking * speed
    return compute_s - copy_s if compute_s > MARGIN * copy_s else None


def _path(source: str, destination: str, view: View) -> PathView | None:
    if source == destination:
        return PathView(source=source, destination=destination, rate_bps=None, rtt_s=0.0)
    return next((p for p in view.paths if (p.source, p.destination) == (source, destination)), None)
