"""What the prefix caches did in a run: who found how much, what it saved, and what was thrown away."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from msgspec import Struct

from prfaas_lab.metrics import events as ev

_POOL = ("blocks", "snapshots", "memory_bytes", "disk_bytes", "disk_hit_tokens", "snapshots_made",
         "snapshots_reused", "evicted_blocks", "evicted_snapshots", "spilled", "reloaded", "damaged",
         "transfers_made", "transfers_refused", "transfer_peak_bytes")  # fmt: skip


class Reuse(Struct):
    """What prefills found and decode engines held."""

    requests: int = 0
    hits: int = 0
    cached_tokens: int = 0
    decoded_tokens: int = 0
    computed_tokens: int = 0
    held_bytes: int = 0


class Caches:
    """Folded from a run's events. Counts of reuse are those of prefills that finished."""

    def __init__(self) -> None:
        self._pools: dict[tuple[str, str], ev.CacheSampled] = {}
        """By engine and role: one that may change its role has a pool for each."""
        self._reuse: defaultdict[str, Reuse] = defaultdict(Reuse)
        self._copies: Counter[str] = Counter()

    def sampled(self, event: ev.CacheSampled) -> None:
        self._pools[event.engine, event.role] = event

    def copied(self, event: ev.CacheCopied) -> None:
        what = "copies" if event.answer_of is None else "answers"
        self._copies.update({what: 1, f"{what}_bytes": event.bytes})

    def prefilled(self, event: ev.PrefillFinished) -> None:
        reuse = self._reuse[event.engine]
        reuse.requests += 1
        reuse.hits += event.cached_tokens > 0
        reuse.cached_tokens += event.cached_tokens
        reuse.decoded_tokens += event.decoded_tokens
        reuse.computed_tokens += event.computed_tokens

    def transferred(self, event: ev.TransferFinished) -> None:
        self._reuse[event.destination].held_bytes += event.held_bytes

    def report(self, sites: Mapping[str, str]) -> dict[str, Any]:
        """Over all, and per datacenter; `sites` says where each engine is. `held_bytes` did not cross,
        since the decode engine had them; `kept` is whether any engine has a cache at all."""
        named = {site: [e for e, at in sites.items() if at == site] for site in sorted(set(sites.values()))}
        return {
            "kept": bool(self._pools),
            **self._over(self._reuse.keys() | {engine for engine, _ in self._pools}),
            "copies": self._copies["copies"],
            "copied_bytes": self._copies["copies_bytes"],
            "answers": self._copies["answers"],
            "answer_bytes": self._copies["answers_bytes"],
            "datacenters": {site: self._over(engines) for site, engines in named.items()},
        }

    def _over(self, engines: Collection[str]) -> dict[str, Any]:
        parts = [self._reuse[name] for name in engines if name in self._reuse]
        reuse = {name: sum(getattr(part, name) for part in parts) for name in Reuse.__struct_fields__}
        pools = [pool for (engine, _), pool in self._pools.items() if engine in engines]
        held = {name: sum(getattr(pool, name) for pool in pools) for name in _POOL}
        prompt_tokens = reuse["cached_tokens"] + reuse["computed_tokens"]
        return {
            **reuse,
            "hit_rate_requests": _share(reuse["hits"], reuse["requests"]),
            "hit_rate_tokens": _share(reuse["cached_tokens"], prompt_tokens),
            **held,
            "snapshot_efficiency": _share(held["snapshots_reused"], held["snapshots_made"]),
        }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
