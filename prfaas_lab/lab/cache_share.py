"""How much prefix cache each engine of a run gets, emulated or simulated."""

from __future__ import annotations

from pathlib import Path

from prfaas_lab.kvcache import Geometry
from prfaas_lab.lab.orders import CacheShare
from prfaas_lab.lab.starting import convertible
from prfaas_lab.spec.scenario import Resolved


def cache_share(resolved: Resolved, datacenter: str, *, disk_path: Path | None = None) -> CacheShare | None:
    """An engine's equal share of its datacenter's prefix cache; sizes shrink by `scale`, as rates do.
    `disk_path` is where a second tier's files may go.

    One that may change its role has a pool for each, of half its share, and hands no answers over.
    """
    scenario, site = resolved.scenario, resolved.topology.datacenters[datacenter]
    if site.cache is None or scenario.cache == "off":
        return None
    pools = (site.engines.prefill + site.engines.decode) * (2 if convertible(resolved, datacenter) else 1)
    memory_bytes = int(site.cache.memory * scenario.scale / pools)
    if not memory_bytes:
        return None
    # What was received in a lossy form is not to be computed on again.
    hands_over = not scenario.transport.lossy and not convertible(resolved, datacenter)
    keeps_answers = hands_over and site.cache.answers == "keep"
    return CacheShare(
        memory_bytes=memory_bytes,
        disk_bytes=int(site.cache.disk * scenario.scale / pools),
        disk_path=str(disk_path) if disk_path else None,
        settings=site.cache,
        keeps_answers=keeps_answers,
    )


def keeps_prefixes(resolved: Resolved) -> bool:
    """Whether any engine has a prefix cache."""
    return any(cache_share(resolved, name) for name in resolved.topology.datacenters)


def keeping_answers(resolved: Resolved) -> list[str]:
    """The datacenters whose decode engines hand over what they computed."""
    shares = {name: cache_share(resolved, name) for name in resolved.topology.datacenters}
    return [name for name, share in shares.items() if share and share.keeps_answers]


def geometry_of(resolved: Resolved, *, token_bytes: int, state_bytes: int) -> Geometry:
    """A block is one prefill chunk: states exist at chunk boundaries only."""
    chunk = resolved.scenario.engine.chunk
    return Geometry(block_tokens=chunk, block_bytes=token_bytes * chunk, snapshot_bytes=state_bytes)
