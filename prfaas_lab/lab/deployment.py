"""A topology as a running deployment: network, engines, and the service that uses them.

Two steps, since the network must be up before an event loop starts: `bring_up` (blocking) makes the
namespaces while the zygote loads the model; `Foundation.deploy` (on the loop) starts the engines,
measures the links, and yields a `Deployment` that is ready to serve.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prfaas_lab.engine.corruption import Corruption
from prfaas_lab.errors import FabricError
from prfaas_lab.fabric import network
from prfaas_lab.fabric.measure import judge, measure
from prfaas_lab.fabric.network import Fabric
from prfaas_lab.fabric.ownership import Ownership
from prfaas_lab.lab.cache_share import geometry_of, keeping_answers, keeps_prefixes
from prfaas_lab.lab.conditions import Conditions
from prfaas_lab.lab.engine_processes import EngineProcesses
from prfaas_lab.lab.engines import Engine
from prfaas_lab.lab.kvcache_manager import KVCacheManager
from prfaas_lab.lab.meanwhile import meanwhile
from prfaas_lab.lab.orders import LoadModel, ModelReady
from prfaas_lab.lab.pacing import Pacing, costs_of, pacing_of
from prfaas_lab.lab.priority import ahead_of_engines
from prfaas_lab.lab.processes import Processes
from prfaas_lab.lab.replication import replicate
from prfaas_lab.lab.service import Service
from prfaas_lab.lab.starting import plan_of
from prfaas_lab.lab.versions import versions
from prfaas_lab.lab.watch import sample_links, watch_engines, watch_links, watch_machine, watch_shaper
from prfaas_lab.lab.watch_paths import watch_paths
from prfaas_lab.lab.ways import Ways
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.metrics.run import run_started
from prfaas_lab.router import DatacenterView, Route
from prfaas_lab.spec.scenario import Resolved


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked of a run beyond its scenario."""

    out: Path
    mode: Literal["emulate", "serve"] = "emulate"
    shaper: str = "auto"
    allow_unfaithful: bool = False
    corrupt: Corruption | None = None
    """Hidden: damage this kind of KVCache in every transfer, to prove that verification bites."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Engines that are ready, over links that were measured. `processes` can fork more helpers."""

    resolved: Resolved
    fabric: Fabric
    engines: dict[str, Engine]
    service: Service
    ledger: Ledger
    conditions: Conditions
    model: ModelReady
    start_verifier: Callable[[int], Awaitable[tuple[str, str]]]


@contextmanager
def bring_up(resolved: Resolved, options: Options, ledger: Ledger) -> Iterator[Foundation]:
    """The network, and meanwhile the zygote with the model; both gone at exit. Blocks.

    Raises LabError when the machine cannot carry it.
    """
    scenario, pacing = resolved.scenario, pacing_of(resolved)
    with ExitStack() as stack:
        ownership = Ownership(f"{int(time.time()):x}{secrets.token_hex(2)}")
        stack.callback(ownership.release)
        load = LoadModel(
            model=scenario.model,
            chunk_tokens=scenario.engine.chunk,
            paced=pacing.model if pacing else None,
        )
        processes = Processes(load, options.out / "zygote.log")
        stack.callback(processes.kill)
        ownership.claim_process(processes.pid)
        fabric = stack.enter_context(
            network.up(
                resolved.topology,
                run_id=ownership.run_id,
                ownership=ownership,
                shaper=options.shaper,
                scale=scenario.scale,
                time_scale=scenario.time_scale,
                seed=scenario.seed,
            )
        )
        ledger.record(
            run_started(
                resolved, at_s=ledger.now(), mode=options.mode, shaper=fabric.shaper, versions=versions()
            )
        )
        conditions = stack.enter_context(Conditions.opened(resolved, fabric, ownership, ledger))
        started = EngineProcesses(
            resolved,
            ledger=ledger,
            fabric=fabric,
            processes=processes,
            ownership=ownership,
            pacing=pacing,
            out=options.out,
            corrupt=options.corrupt,
        )
        foundation = Foundation(resolved, options, ledger, fabric, processes, started, conditions, pacing)
        foundation.phase("network", 1, 1, f"shaped by {fabric.shaper} ({fabric.reason})")
        yield foundation


@dataclass(slots=True)
class Foundation:
    """A network that is up and a zygote that is loading, waiting for an event loop."""

    resolved: Resolved
    options: Options
    ledger: Ledger
    fabric: Fabric
    processes: Processes
    started: EngineProcesses
    conditions: Conditions
    pacing: Pacing | None = None

    @asynccontextmanager
    async def deploy(self, route: Route) -> AsyncIterator[Deployment]:
        """Start the engines, measure the links, watch everything; ended and reaped at exit.

        Raises LabError when an engine is not ready in time, or a link is off its spec.
        """
        async with asyncio.TaskGroup() as group, AsyncExitStack() as stack:
            stack.enter_context(ahead_of_engines())
            group.create_task(self.processes.watch(self.started.exited), name="zygote")
            stack.push_async_callback(self.processes.close)
            stack.callback(self.phase, "teardown")
            model = await self._load()
            await self.started.start(stack)
            await self._measure_links()
            await sample_links(self.fabric, self.ledger)
            ways = Ways(self.fabric)
            deployment = Deployment(
                resolved=self.resolved,
                fabric=self.fabric,
                engines=self.started.engines,
                service=self._service(route, model, ways),
                ledger=self.ledger,
                conditions=self.conditions,
                model=model,
                start_verifier=self.started.start_verifier,
            )
            async with meanwhile(
                watch_links(self.fabric, self.ledger),
                watch_engines(self.started.engines.values(), self.ledger),
                watch_paths(self.started.engines.values(), self.resolved.topology, ways, self.ledger),
                watch_machine(self.ledger),
                watch_shaper(self.fabric.shaper_pid, self.ledger),
                *self._upkeep(deployment.service),
            ):
                yield deployment

    def _upkeep(self, service: Service) -> list[Coroutine[Any, Any, None]]:
        if service.caches is None or service.copies is None:
            return []
        upkeep = [replicate(service.caches, service.copies, service.view, self.ledger)]
        return upkeep if service.answers is None else [*upkeep, service.answers.run()]

    def phase(self, name: str, done: int | None = None, total: int | None = None, detail: str = "") -> None:
        """Tell the ledger how far the run is."""
        event = ev.PhaseChanged(at_s=self.ledger.now(), name=name, done=done, total=total, detail=detail)
        self.ledger.record(event)

    async def _load(self) -> ModelReady:
        self.phase("model", 0, 1)
        model = await self.processes.ready(self.resolved.scenario.engine.ready_timeout)
        detail = f"{model.title}: {model.parameters / 1e6:.1f} M parameters in {model.load_s:.1f} s"
        if self.pacing:
            detail = f"{model.title}, paced: no model to load"
        self.phase("model", 1, 1, detail)
        return model

    async def _measure_links(self) -> None:
        """Before anything else is on them. Raises FabricError when one is not what its spec says."""
        self.phase("links", 0, len(self.fabric.directions))
        faults: list[str] = []
        tolerance = self.resolved.scenario.tolerance
        for measurement in await measure(self.fabric, tolerance=tolerance):
            reasons = tuple(judge(measurement, tolerance))
            faults += reasons
            self.ledger.record(
                ev.LinkMeasured(
                    at_s=self.ledger.now(),
                    link=measurement.link,
                    source=measurement.source,
                    configured_bps=measurement.configured_bps,
                    measured_bps=measurement.goodput_bps,
                    configured_rtt_ms=1e3 * measurement.configured_rtt_s,
                    measured_rtt_ms=1e3 * measurement.rtt_s,
                    reasons=reasons,
                )
            )
        self.phase("links", len(self.fabric.directions), len(self.fabric.directions))
        if faults and not self.options.allow_unfaithful:
            raise FabricError(
                "the network is not what the topology says: " + "; ".join(faults),
                remedy="quieten the machine, lower the rates (scale), or accept it with --allow-unfaithful",
            )

    def _service(self, route: Route, model: ModelReady, ways: Ways) -> Service:
        topology, scenario = self.resolved.topology, self.resolved.scenario
        return Service(
            engines=self.started.engines,
            datacenters=tuple(
                DatacenterView(name=name, role=site.role) for name, site in topology.datacenters.items()
            ),
            network=ways,
            route=route,
            plan=plan_of(scenario.policy),
            expected_bytes=lambda tokens: model.state_bytes + model.token_bytes * tokens,
            ledger=self.ledger,
            caches=self._caches(model),
            costs=costs_of(self.resolved),
            sends_ids=self.pacing is None,
            keep_answers=keeping_answers(self.resolved),
        )

    def _caches(self, model: ModelReady) -> KVCacheManager | None:
        """Who knows what all prefix caches hold; None when there are none."""
        if not keeps_prefixes(self.resolved):
            return None
        geometry = geometry_of(self.resolved, token_bytes=model.token_bytes, state_bytes=model.state_bytes)
        return KVCacheManager(
            geometry, self.started.engines, namespace=secrets.token_bytes(16), ledger=self.ledger
        )
