"""The baselines: `(Request, View, Plan) -> Placement`.

A policy is pure. It decides over what the view shows and never waits; what a placement costs shows
later in the ledger. Engines that are not alive and paths that are not up do not exist for it.
"""

from __future__ import annotations

import hashlib

from prfaas_lab.router.placing import (
    NoPlacement,
    decode_engine,
    place,
    placed,
    remote_prefill,
    uncached_tokens,
)
from prfaas_lab.router.values import Placement, Plan, View
from prfaas_lab.workload.request import Request


def threshold(request: Request, view: View, plan: Plan) -> Placement:
    """PrfaaS for a long uncached remainder, the local cluster for a short one (paper, 3.4).

    l_total - l_pd > t goes to PrfaaS. When the preferred side has no live engine, or no path leads
    from it, the other side serves.
    """
    decode = decode_engine(view)
    uncached = uncached_tokens(request, view, decode.datacenter)
    limit = plan.threshold_tokens
    if limit is None:
        raise NoPlacement(
            "the threshold policy has no threshold", remedy="set policy.threshold in the scenario"
        )
    long = uncached > limit
    relation = f"{uncached} uncached tokens {'>' if long else '<='} threshold {limit}"
    return place(request, view, decode, prefer_remote=long, reason=relation)


def local_only(request: Request, view: View, plan: Plan) -> Placement:
    """Every prefill in the decode engine's own datacenter: homogeneous PD disaggregation."""
    decode = decode_engine(view, with_prefill=True)
    engine = view.idlest("prefill", decode.datacenter)
    if engine is None:
        raise NoPlacement(
            f"no live prefill engine in {decode.datacenter}",
            where="policy local-only",
            remedy="give a local datacenter a prefill engine, or choose another policy",
        )
    return placed(request, view, engine, decode, "local-only prefills at home")


def remote_all(request: Request, view: View, plan: Plan) -> Placement:
    """Every prefill on PrfaaS: the paper's naive heterogeneous baseline. Never falls back."""
    decode = decode_engine(view)
    engine = remote_prefill(view, decode.datacenter)
    if engine is None:
        raise NoPlacement(
            f"no live PrfaaS engine with a path to {decode.datacenter}",
            where="policy remote-all",
            remedy="give the topology a prfaas datacenter, or choose another policy",
        )
    return placed(request, view, engine, decode, "remote-all offloads every prefill")


def balanced(request: Request, view: View, plan: Plan) -> Placement:
    """A share of the requests to PrfaaS whatever their length: equation 7 without a threshold.

    Which ones is drawn from their ids, so that the same request always goes the same way.
    """
    share = plan.offload_share
    if share is None:
        raise NoPlacement("the balanced policy has no share to offload", remedy="set policy.share")
    digest = hashlib.blake2b(request.id.encode(), digest_size=8).digest()
    remote = int.from_bytes(digest, "big") < share * 2**64
    reason = f"length-blind: {share:.1%} are offloaded"
    return place(request, view, decode_engine(view), prefer_remote=remote, reason=reason)
