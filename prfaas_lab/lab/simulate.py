"""One run of a scenario on a virtual clock: the control plane of `lab.run`, engines and links reckoned."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prfaas_lab.engine.analytic import AnalyticDecode, AnalyticPrefill
from prfaas_lab.engine.cores import Cores
from prfaas_lab.engine.prefix_cache import pool_of
from prfaas_lab.engine.sized_cache import SizedCache
from prfaas_lab.fabric.fluid_network import FluidNetwork
from prfaas_lab.fabric.timeline import Change, ShapeChange
from prfaas_lab.kvcache import Geometry, MemoryTier
from prfaas_lab.lab.cache_share import cache_share, geometry_of, keeping_answers, keeps_prefixes
from prfaas_lab.lab.conditions import Conditions, timeline_of
from prfaas_lab.lab.drive import Driver
from prfaas_lab.lab.engines import Engine, EngineClient
from prfaas_lab.lab.faults import the_fault
from prfaas_lab.lab.kvcache_manager import KVCacheManager
from prfaas_lab.lab.meanwhile import meanwhile
from prfaas_lab.lab.pacing import Pacing
from prfaas_lab.lab.replication import replicate
from prfaas_lab.lab.results import results_in
from prfaas_lab.lab.service import Service
from prfaas_lab.lab.simulated import Landings, SimulatedDecode, SimulatedPair, SimulatedPrefill
from prfaas_lab.lab.simulated_cache import CopyLandings, SimulatedCache
from prfaas_lab.lab.simulated_pacing import simulated_pacing
from prfaas_lab.lab.simulated_paths import SimulatedPaths
from prfaas_lab.lab.starting import convertible, plan_of, scheduler_for
from prfaas_lab.lab.versions import versions
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.lab.watch import read_links, sample_engines
from prfaas_lab.lab.ways import Ways
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.files import EventWriter, RequestWriter, write_summary
from prfaas_lab.metrics.handover import Account
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.metrics.run import run_started
from prfaas_lab.metrics.summary import summarize
from prfaas_lab.router import UNAWARE, DatacenterView, Route, route_of
from prfaas_lab.router.values import Role
from prfaas_lab.spec.scenario import Resolved
from prfaas_lab.transport.limits import Limits
from prfaas_lab.workload.generate import generate

LINK_INTERVAL_S = 0.1
_COLLECT_EVERY = 1_000_000
LINK_SAMPLES = 20_000
"""Of one direction in a whole run, at most: a day is sampled less often than a minute."""

Progress = Callable[[Ledger], None]
"""Told after every request that ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What is asked of a simulation beyond its scenario."""

    out: Path | None = None
    """Where its files go; None writes none."""
    events: bool = True
    """Whether `events.jsonl` is written."""
    progress: Progress = lambda ledger: None
    profile: Path | None = None
    """Of the scenario's model, measured on this machine; None takes the shipped one."""


def simulate(resolved: Resolved, asked: Simulation = Simulation()) -> dict[str, Any]:
    """Run it in virtual time; its summary, the same for the same scenario to the last digit.

    Raises LabError when the scenario cannot be simulated, Deadlock (naming the tasks) when it stalls.
    """
    route = route_of(resolved.scenario.policy)
    pacing = simulated_pacing(resolved, asked.profile)
    with ExitStack() as stack:
        write: Callable[[Account], None] = _forget
        if asked.out is not None:
            stack.enter_context(results_in(asked.out, resolved))
            write = stack.enter_context(RequestWriter(asked.out / "requests.jsonl"))
        stack.enter_context(_few_collections())
        ledger = run_virtual(_Run(resolved, asked, route, pacing, write).main())
        for record in ledger.tally.requests.values():
            write(Account.of(record))
        summary = {**summarize(ledger.tally), "stopped": None}
        if asked.out is not None:
            write_summary(asked.out / "summary.json", summary)
    return summary


@contextmanager
def _few_collections() -> Iterator[None]:
    """What a run allocates is freed by count, but for the rare cycle of a failure: looking for cycles at
    Python's usual pace costs a tenth of a simulation."""
    before = gc.get_threshold()
    gc.set_threshold(_COLLECT_EVERY, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _forget(account: Account) -> None:
    """Nobody wants its row."""


@dataclass(slots=True)
class _Run:
    resolved: Resolved
    asked: Simulation
    route: Route
    pacing: Pacing
    retire: Callable[[Account], None]
    cores: Cores | None = None
    """Of the machine that all engines share, if they do."""

    async def main(self) -> Ledger:
        def retire(account: Account) -> None:
            self.retire(account)
            self.asked.progress(ledger)

        ledger = Ledger(asyncio.get_running_loop().time, 0.0, retire=retire)
        with ExitStack() as stack:
            stack.enter_context(self._written(ledger))
            try:
                await self._serve(ledger)
            except BaseExceptionGroup as errors:
                raise the_fault(errors) from errors
            _phase(ledger, "done")
        return ledger

    @contextmanager
    def _written(self, ledger: Ledger) -> Iterator[None]:
        if self.asked.out is None or not self.asked.events:
            yield
            return
        with EventWriter(self.asked.out / "events.jsonl") as writer:
            ledger.subscribe(writer)
            yield

    async def _serve(self, ledger: Ledger) -> None:
        scenario = self.resolved.scenario
        network = FluidNetwork(self.resolved.topology, scale=scenario.scale, time_scale=scenario.time_scale)
        started = run_started(self.resolved, at_s=0.0, mode="simulate", shaper="fluid", versions=versions())
        ledger.record(started)
        _phase(ledger, "network", network.reason)
        engines = self._engines(network, ledger)
        ways = Ways(network)
        for datacenter in network.connections:
            limits = Limits.of(scenario.transport, ways.hint(datacenter))
            network.connections[datacenter] = limits.connections_to_peer(network.window_bytes)
        service = self._service(engines, ways, ledger)

        requests = generate(
            scenario.workload,
            seed=scenario.seed,
            vocab_size=None,
            duration_s=scenario.duration,
            time_scale=scenario.time_scale,
            contents=service.caches is not None,
        )
        conditions = self._conditions(network, ledger)
        _sample(network, ledger)
        await sample_engines(engines.values(), ledger)
        scheduler = scheduler_for(self.resolved, service, engines, ledger)
        interval_s = max(LINK_INTERVAL_S, scenario.duration * scenario.time_scale / LINK_SAMPLES)
        adapting = [scheduler.run()] if scheduler else []
        if service.caches is not None and service.copies is not None:
            adapting.append(replicate(service.caches, service.copies, service.view, ledger))
        if service.answers is not None:
            adapting.append(service.answers.run())
        if adapting or scenario.policy.name not in UNAWARE:
            adapting.append(SimulatedPaths(network, ways).watch(interval_s))
        async with meanwhile(_watch_links(network, ledger, interval_s), conditions.run(), *adapting):
            await Driver(scenario, requests, service.serve, ledger).run()
        _sample(network, ledger)
        await sample_engines(engines.values(), ledger)

    def _engines(self, network: FluidNetwork, ledger: Ledger) -> dict[str, Engine]:
        landings, engines = Landings(), {}
        copies = CopyLandings()
        if self.pacing.machine is not None:
            self.cores = Cores(self.pacing.machine.cores)
        topology = self.resolved.topology
        for datacenter in topology.datacenters:
            for name, role in topology.engine_names(datacenter).items():
                prefills = role == "prefill"
                client = self._client(name, datacenter, role, network, landings, copies)
                batch = self._batch(datacenter) if topology.datacenters[datacenter].role == "local" else 1
                engines[name] = Engine(
                    name=name,
                    datacenter=datacenter,
                    role=role,
                    client=client,
                    capacity=1 if prefills else batch,
                    other_capacity=batch if prefills else 1,
                )
                ledger.record(
                    ev.EngineStarted(at_s=0.0, engine=name, datacenter=datacenter, role=role, netns="", pid=0)
                )
        return engines

    def _client(
        self, name: str, datacenter: str, role: Role, network: FluidNetwork, landings: Landings,
        copies: CopyLandings,
    ) -> EngineClient:  # fmt: skip
        def cache(*, resumable: bool) -> SimulatedCache | None:
            return self._cache(name, datacenter, network, copies, resumable=resumable)

        if convertible(self.resolved, datacenter):
            return SimulatedPair(
                self._prefill(name, datacenter, network, landings, cache(resumable=True)),
                self._decode(name, datacenter, landings, cache(resumable=False)),
            )
        if role == "prefill":
            return self._prefill(name, datacenter, network, landings, cache(resumable=True))
        return self._decode(name, datacenter, landings, cache(resumable=False))

    def _cache(
        self, name: str, datacenter: str, network: FluidNetwork, copies: CopyLandings, *, resumable: bool
    ) -> SimulatedCache | None:
        share = cache_share(self.resolved, datacenter)
        if share is None:
            return None
        pool = pool_of(
            self._geometry(),
            share.memory_bytes,
            resumable=resumable,
            snapshots=share.settings.snapshots,
            snapshot_every=share.settings.snapshot_every,
            eviction=share.settings.eviction,
            spill=MemoryTier(share.disk_bytes) if share.disk_bytes else None,
        )
        cache = SizedCache(pool, state_bytes=self.pacing.model.state_bytes)
        hands_over = share.keeps_answers and not resumable
        most_answers = 2 * self._batch(datacenter) if hands_over else 0
        return SimulatedCache(name, cache, network, copies, most_answers=most_answers)

    def _geometry(self) -> Geometry:
        model = self.pacing.model
        return geometry_of(self.resolved, token_bytes=model.token_bytes, state_bytes=model.state_bytes)

    def _prefill(
        self, name: str, datacenter: str, network: FluidNetwork, landings: Landings,
        cache: SimulatedCache | None,
    ) -> EngineClient:  # fmt: skip
        settings, pacing = self.resolved.scenario.engine, self.pacing
        profile, time_scale = pacing.profiles[datacenter], pacing.time_scale

        def prefill_s(tokens: float, cached_tokens: float) -> float:
            return time_scale * profile.prefill_s(tokens, cached_tokens)

        return SimulatedPrefill(
            name,
            AnalyticPrefill(prefill_s, max_queue=settings.max_queue, clock=self.cores),
            prefill_s=prefill_s,
            model=pacing.model,
            chunk_tokens=settings.chunk,
            network=network,
            landings=landings,
            cache=cache,
            order_s=pacing.machine.order if pacing.machine else 0.0,
            connect_s=pacing.machine.connect if pacing.machine else 0.0,
            clock=self.cores,
        )

    def _decode(
        self, name: str, datacenter: str, landings: Landings, cache: SimulatedCache | None
    ) -> EngineClient:
        profile, time_scale = self.pacing.profiles[datacenter], self.pacing.time_scale
        machine = self.pacing.machine
        steps = [time_scale * profile.step_s(batch) for batch in range(self._batch(datacenter) + 1)]
        engine = AnalyticDecode(
            steps.__getitem__,
            max_batch=self._batch(datacenter),
            max_queue=self.resolved.scenario.engine.max_queue,
            restore_s=machine.restore if machine else 0.0,
            clock=self.cores,
        )
        return SimulatedDecode(name, engine, landings, cache)

    def _batch(self, datacenter: str) -> int:
        engine = self.resolved.scenario.engine
        return self.pacing.profiles[datacenter].bs_max if engine.executor == "paced" else engine.max_batch

    def _service(self, engines: dict[str, Engine], ways: Ways, ledger: Ledger) -> Service:
        topology, model = self.resolved.topology, self.pacing.model
        return Service(
            engines=engines,
            datacenters=tuple(
                DatacenterView(name=name, role=site.role) for name, site in topology.datacenters.items()
            ),
            network=ways,
            route=self.route,
            plan=plan_of(self.resolved.scenario.policy),
            expected_bytes=lambda tokens: model.state_bytes + model.token_bytes * tokens,
            ledger=ledger,
            caches=self._caches(engines, ledger),
            costs=self.pacing.costs,
            keep_answers=keeping_answers(self.resolved),
        )

    def _caches(self, engines: dict[str, Engine], ledger: Ledger) -> KVCacheManager | None:
        if not keeps_prefixes(self.resolved):
            return None
        return KVCacheManager(self._geometry(), engines, namespace=b"simulation", ledger=ledger)

    def _conditions(self, network: FluidNetwork, ledger: Ledger) -> Conditions:
        async def apply(change: Change) -> float:
            if isinstance(change, ShapeChange):
                return network.change(change.link, change.source, change.shape)
            act = network.start_traffic if change.starts else network.stop_traffic
            return act(change.link, change.source, change.traffic)

        return Conditions(timeline_of(self.resolved, network), ledger, apply=apply, check=network.check)


async def _watch_links(network: FluidNetwork, ledger: Ledger, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        _sample(network, ledger)


def _sample(network: FluidNetwork, ledger: Ledger) -> None:
    for sample in read_links(network, ledger):
        ledger.record(sample)


def _phase(ledger: Ledger, name: str, detail: str = "") -> None:
    ledger.record(ev.PhaseChanged(at_s=ledger.now(), name=name, detail=detail))
