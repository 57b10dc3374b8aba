"""Reads every 100 ms how the ways between datacenters fare, for the ledger and for policies."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any

from prfaas_lab.errors import EngineError
from prfaas_lab.lab.egress import Egress, Estimate
from prfaas_lab.lab.engines import Engine
from prfaas_lab.lab.ways import Ways
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.spec.topology import Topology

PATH_INTERVAL_S = 0.1
_FRESH_S = 0.25
"""A sample older than this says nothing of now."""

Hop = tuple[str, str]
"""One direction of a link: its name, and the end that sends."""


async def watch_paths(engines: Iterable[Engine], topology: Topology, ways: Ways, ledger: Ledger) -> None:
    """For as long as it is left to run, as often as engines sample: none is missed, or counted twice."""
    watch, loop = PathWatch(tuple(engines), topology, ways, ledger), asyncio.get_running_loop()
    due_s = loop.time()
    while True:
        await watch.round()
        due_s = max(due_s + PATH_INTERVAL_S, loop.time())
        await asyncio.sleep(due_s - loop.time())


class PathWatch:
    """Asks those engines of PrfaaS datacenters that have an order in hand, or had one until just now: what
    was sent last shows only in the next sample. Nobody else sends KVCache to another datacenter, but for
    copies of cached prefixes."""

    def __init__(self, engines: tuple[Engine, ...], topology: Topology, ways: Ways, ledger: Ledger) -> None:
        self._ways, self._ledger = ways, ledger
        self._senders = [
            engine
            for engine in engines
            if engine.role == "prefill" and topology.datacenters[engine.datacenter].role == "prfaas"
        ]
        self._pairs = {(view.source, view.destination) for view in ways.paths()}
        self._receivers = {
            (sender.name, ways.data_address(sender.name, engine.name)[0]): engine
            for sender in self._senders
            for engine in engines
            if (sender.datacenter, engine.datacenter) in self._pairs
        }
        self._egress: dict[Hop, Egress] = {}
        self._seen: dict[tuple[str, str], float] = {}
        self._busy_s: dict[str, float] = {}
        """When each engine was last seen with an order in hand."""

    async def round(self) -> None:
        """Ask once, learn, and record what is new."""
        busy = [engine for engine in self._senders if engine.alive and self._may_send(engine)]
        told = [path for paths in await asyncio.gather(*map(self._ask, busy)) for path in paths]
        over: dict[Hop, list[dict[str, Any]]] = {hop: [] for hop in self._egress}
        for sender, receiver, path in told:
            hop = self._ways.bottleneck(sender.datacenter, receiver.datacenter)
            over.setdefault(hop, []).append(path)
        estimates = {
            hop: self._egress.setdefault(hop, Egress()).observe(paths) for hop, paths in over.items()
        }
        for pair in self._pairs:
            estimate = estimates.get(self._ways.bottleneck(*pair))
            if estimate is not None:
                self._ways.learn(*pair, estimate)
        for sender, receiver, path in told:
            self._record(sender, receiver, path, estimates)

    def _may_send(self, engine: Engine) -> bool:
        """Whether a sample of it may show what it sends."""
        now = self._ledger.now()
        if engine.orders:
            self._busy_s[engine.name] = now
        return now - self._busy_s.get(engine.name, -math.inf) < _FRESH_S

    async def _ask(self, engine: Engine) -> list[tuple[Engine, Engine, dict[str, Any]]]:
        """Its paths to other datacenters. None, when it does not answer."""
        try:
            state = await engine.client.state()
        except EngineError:
            return []
        now = self._ledger.now()
        return [
            (engine, receiver, path)
            for path in state.get("paths", ())
            if (receiver := self._receivers.get((engine.name, path["host"]))) is not None
            and now - self._ledger.at(path["at_s"]) < _FRESH_S
        ]

    def _record(
        self, sender: Engine, receiver: Engine, path: dict[str, Any], estimates: dict[Hop, Estimate]
    ) -> None:
        key, at_s = (sender.name, receiver.name), path["at_s"]
        if self._seen.get(key) == at_s:
            return
        self._seen[key] = at_s
        hop = self._ways.bottleneck(sender.datacenter, receiver.datacenter)
        self._ledger.record(
            ev.PathSampled(
                at_s=self._ledger.at(at_s),
                source=sender.name,
                destination=receiver.name,
                link=hop[0],
                link_source=hop[1],
                configured_bps=self._ways.configured_bps(*hop),
                egress_bps=estimates[hop].available_bps,
                **{name: path[name] for name in _AS_TOLD},
            )
        )


_OURS = {"at_s", "source", "destination", "link", "link_source", "configured_bps", "egress_bps"}
_AS_TOLD = tuple(name for name in ev.PathSampled.__struct_fields__ if name not in _OURS)
