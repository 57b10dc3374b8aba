"""The paper's global KVCache manager (3.2): which datacenter and engine holds how much of a prompt.

Each engine has a pool of its own, an equal share of its datacenter's budget. A prefill engine's pool is
one it can resume from; a decode engine's holds blocks alone, which need not be sent to it again. Engines
tell what changed with every order; in between, what is known here is a hint (`kvcache.directory`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any, get_args

from msgspec import structs

from prfaas_lab.kvcache import (
    Demand,
    Directory,
    FutileCopies,
    Geometry,
    Holder,
    Prompt,
    extend_prompt,
    hash_prompt,
)
from prfaas_lab.lab.cache_news import read_news
from prfaas_lab.lab.engines import Engine
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.router.values import CacheView, Role, View


class KVCacheManager:
    """One per run. `namespace` sets apart what this run's model computed from all else."""

    def __init__(
        self, geometry: Geometry, engines: Mapping[str, Engine], *, namespace: bytes, ledger: Ledger
    ) -> None:
        self.directory, self.demand = Directory(geometry), Demand()
        self.geometry, self._engines, self._namespace, self._ledger = geometry, engines, namespace, ledger
        self._missed: set[str] = set()
        self._futile = FutileCopies()

    def name(self, tokens: Sequence[int]) -> Prompt:
        """A prompt as caches know it."""
        return hash_prompt(tokens, block_tokens=self.geometry.block_tokens, namespace=self._namespace)

    def extend(self, prompt: Prompt, tokens: Sequence[int]) -> Prompt:
        """A prompt that goes on with `tokens` after its last complete block."""
        return extend_prompt(prompt, tokens, namespace=self._namespace)

    def matched(self, view: View, prompt: Prompt) -> View:
        """The view with what each datacenter and engine holds of this prompt."""
        self._forget_the_gone()
        usable = self.directory.match_holders(prompt)
        found = {
            engine.name: usable.get(_holder(engine), 0)
            if engine.role == "prefill"
            else self.held_tokens(prompt, engine)
            for engine in self._engines.values()
        }
        best: dict[str, int] = {}
        for holder, tokens in usable.items():
            best[holder.datacenter] = max(tokens, best.get(holder.datacenter, 0))
        return replace(
            view,
            ranks=None,
            datacenters=tuple(replace(dc, prefix_tokens=best.get(dc.name, 0)) for dc in view.datacenters),
            engines=tuple(
                structs.replace(e, prefix_tokens=found[e.name]) if found[e.name] else e for e in view.engines
            ),
            cache=CacheView(
                token_bytes=self.geometry.block_bytes // self.geometry.block_tokens,
                state_bytes=self.geometry.snapshot_bytes,
                futile=self._futile.among(prompt, self._ledger.now()),
            ),
        )

    def held_tokens(self, prompt: Prompt, engine: Engine) -> int:
        """Prompt tokens whose blocks an engine has, in the pool of its present role."""
        return self.directory.held_tokens(prompt, _holder(engine))

    def usable_tokens(self, prompt: Prompt, engine: Engine) -> int:
        """Prompt tokens that a prefill engine can resume from."""
        return self.directory.usable_tokens(prompt, _holder(engine, "prefill"))

    def copied_in_vain(self, prefix: Prompt, source: Engine, destination: Engine) -> None:
        """Views of prompts that begin with `prefix` say so for a while."""
        if prefix.blocks:
            self._futile.add(prefix, source.name, destination.name, self._ledger.now())

    def asked(self, prompt: Prompt, *engines: str) -> None:
        """A request for `prompt` was placed on these engines: what it shares with others is wanted in their
        datacenters. At home too, though it was prefilled elsewhere: it might not have been, with a copy."""
        for site in dict.fromkeys(self._engines[name].datacenter for name in engines):
            self.demand.observe(prompt, site, self._ledger.now(), self.directory)

    def wants_all(self, engine: Engine) -> bool:
        """Whether something this engine told was lost, so that it should tell all that it holds."""
        return engine.name in self._missed

    def learn(self, engine: Engine, role: Role, news: dict[str, Any]) -> None:
        """Take in what an engine told of its pool for a role, which may not be its present one."""
        delta, stats = read_news(news)
        if self.directory.apply(_holder(engine, role), delta):
            self._missed.discard(engine.name)
        else:
            self._missed.add(engine.name)
        counts = {name: value for name, value in asdict(stats).items() if name in ev.CACHE_COUNTS}
        self._ledger.record(ev.CacheSampled(at_s=self._ledger.now(), engine=engine.name, role=role, **counts))

    def _forget_the_gone(self) -> None:
        for engine in self._engines.values():
            for role in _ROLES:
                if not engine.alive or role != engine.role:
                    self.directory.forget(_holder(engine, role))


_ROLES: tuple[Role, ...] = get_args(Role)


def _holder(engine: Engine, role: Role | None = None) -> Holder:
    """An engine that changes its role has a pool for each."""
    return _named(engine.datacenter, engine.name, role or engine.role)


@cache
def _named(datacenter: str, engine: str, role: Role) -> Holder:
    return Holder(datacenter, f"{engine} as {role}")
