"""Copies hot prefixes to the datacenters that ask for them, before the next request does (the paper, 3.2)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from prfaas_lab.kvcache import FutileCopies, Prompt, Replication, replication_advice
from prfaas_lab.lab.cache_copies import CacheCopies
from prfaas_lab.lab.kvcache_manager import KVCacheManager
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.router.placement_cache import ABUNDANT_BELOW
from prfaas_lab.router.values import EngineView, PathView, View

INTERVAL_S = 2.0
COPIES_AT_ONCE = 2
"""A round copies so many at most, one after the other: requests use the same links."""
_UNSHAPED_BPS = 1e12


async def replicate(
    caches: KVCacheManager, copies: CacheCopies, view: Callable[[], View], ledger: Ledger
) -> None:
    """Round after round, for as long as it is let run."""
    futile = FutileCopies()
    while True:
        await asyncio.sleep(INTERVAL_S)
        promising = [
            advice
            for advice in advised(caches, view(), ledger.now())
            if (advice.source, advice.destination) not in futile.among(advice.prompt, ledger.now())
        ]
        for advice in promising[:COPIES_AT_ONCE]:
            ends = engines_for(caches, advice, view())
            if ends is None:
                continue
            reason = f"hot: saves {advice.saved_s:.2f} s a minute for {advice.cost_s:.2f} s on the link"
            await copies.copy(advice.prompt, *ends, reason=reason)
            if caches.directory.match(advice.prompt).get(advice.destination, 0) < tokens_of(advice.prompt):
                futile.add(advice.prompt, advice.source, advice.destination, ledger.now())


def advised(caches: KVCacheManager, view: View, now_s: float) -> tuple[Replication, ...]:
    """What to copy now, best first; over links that have bandwidth to spare."""
    rate_bps = {(path.source, path.destination): _spare_bps(path) for path in view.paths}
    if not any(rate_bps.values()):
        return ()
    return replication_advice(
        caches.demand.hottest(now_s, caches.directory),
        geometry=caches.geometry,
        prefill_s_per_token=_speeds(view.engines),
        rate_bps=rate_bps,
    )


def engines_for(caches: KVCacheManager, advice: Replication, view: View) -> tuple[str, str] | None:
    """The engine that holds most of the prefix, and the idlest one at the destination."""
    seen = caches.matched(view, advice.prompt)
    prefill = [engine for engine in seen.engines if engine.role == "prefill" and engine.alive]
    sources = [engine for engine in prefill if engine.datacenter == advice.source]
    targets = [engine for engine in prefill if engine.datacenter == advice.destination]
    if not sources or not targets:
        return None
    source = max(sources, key=lambda engine: (engine.prefix_tokens, engine.name))
    target = min(targets, key=lambda engine: (engine.queued_tokens, engine.name))
    return (source.name, target.name) if source.prefix_tokens >= tokens_of(advice.prompt) else None


def tokens_of(prompt: Prompt) -> int:
    return len(prompt.blocks) * prompt.block_tokens


def _speeds(engines: Iterable[EngineView]) -> dict[str, float]:
    """Seconds a token takes to prefill in each datacenter: its fastest engine's. One that has computed
    nothing yet is taken to be as fast as the fastest, so that a copy there is not thought too useful."""
    prefill = [engine for engine in engines if engine.alive and engine.role == "prefill"]
    measured = [engine.prefill_s_per_token for engine in prefill if engine.prefill_s_per_token is not None]
    if not measured:
        return {}
    found: dict[str, float] = {}
    for engine in prefill:
        speed = engine.prefill_s_per_token
        known = found.get(engine.datacenter)
        if speed is not None and (known is None or speed < known):
            found[engine.datacenter] = speed
    return {engine.datacenter: min(measured) for engine in prefill} | found


def _spare_bps(path: PathView) -> float:
    if not path.up or path.utilization > ABUNDANT_BELOW:
        return 0.0
    return _UNSHAPED_BPS if path.rate_bps is None else path.rate_bps * (1 - path.utilization)
