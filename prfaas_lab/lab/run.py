"""One run of a scenario: bring everything up, drive, drain, verify, and take it all down again."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from prfaas_lab.engine.corruption import Corruption
from prfaas_lab.errors import FabricError
from prfaas_lab.fabric import network
from prfaas_lab.fabric.measure import judge, measure
from prfaas_lab.fabric.network import DATA_PORT, Fabric
from prfaas_lab.fabric.ownership import Ownership
from prfaas_lab.lab.drive import Driver
from prfaas_lab.lab.engines import ControlClient, Engine
from prfaas_lab.lab.faults import the_fault
from prfaas_lab.lab.orders import EngineOrder, LoadModel, ModelReady, VerifierOrder
from prfaas_lab.lab.processes import Processes, last_words
from prfaas_lab.lab.service import Service
from prfaas_lab.lab.verify import Answer, chosen, verify
from prfaas_lab.lab.versions import versions
from prfaas_lab.lab.watch import watch_engines, watch_links, watch_machine
from prfaas_lab.lab.ways import Ways
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.files import EventWriter, write_requests, write_summary
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.metrics.run import run_started
from prfaas_lab.metrics.summary import summarize
from prfaas_lab.router import DatacenterView, Plan, Route, policy
from prfaas_lab.spec.dump import dump
from prfaas_lab.spec.scenario import Resolved
from prfaas_lab.workload.generate import generate
from prfaas_lab.workload.request import Request

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Screen = Callable[[Ledger], AbstractAsyncContextManager[Any]]
"""Opens whatever shows the run while it goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked of a run beyond its scenario."""

    out: Path
    shaper: str = "auto"
    allow_unfaithful: bool = False
    corrupt: Corruption | None = None
    """Hidden: damage this kind of KVCache in every transfer, to prove that verification bites."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run that is over. `stopped` names the signal that ended it early, if one did."""

    summary: dict[str, Any]
    stopped: str | None


def run_scenario(resolved: Resolved, options: Options, screen: Screen) -> Outcome:
    """Run it, blocking; the outcome also lies in `options.out` as files (architecture.md).

    Whatever happens, nothing is left on the machine. Raises LabError when the run could not be
    brought up; what happened until then is in `events.jsonl`.
    """
    route = policy(resolved.scenario.policy.name)  # before anything is made: a wrong name costs nothing
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scenario.yaml").write_text(dump(resolved), encoding="utf-8")
    ledger = Ledger(time.monotonic, time.monotonic())
    stopped = None
    with _signals_interrupt(), ExitStack() as stack:
        ledger.subscribe(stack.enter_context(EventWriter(options.out / "events.jsonl")))
        try:
            with _bring_up(resolved, options, ledger) as (fabric, processes, ownership):
                run = _Run(resolved, options, ledger, fabric, processes, ownership)
                stopped = uvloop.run(run.main(screen, route))
        except KeyboardInterrupt as interrupt:
            stopped = str(interrupt) or "SIGINT"
        ledger.record(ev.PhaseChanged(at_s=ledger.now(), name="done"))
    summary = {**summarize(ledger.tally), "stopped": stopped}
    write_requests(options.out / "requests.jsonl", ledger.tally.requests.values())
    write_summary(options.out / "summary.json", summary)
    return Outcome(summary=summary, stopped=stopped)


@contextmanager
def _bring_up(
    resolved: Resolved, options: Options, ledger: Ledger
) -> Iterator[tuple[Fabric, Processes, Ownership]]:
    """The network, and meanwhile the zygote with the model; both gone at exit."""
    scenario = resolved.scenario
    with ExitStack() as stack:
        ownership = Ownership(f"{int(time.time()):x}{secrets.token_hex(2)}")
        stack.callback(ownership.release)
        processes = Processes(
            LoadModel(model=scenario.model, chunk_tokens=scenario.engine.chunk),
            options.out / "zygote.log",
        )
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
                resolved, at_s=ledger.now(), mode="emulate", shaper=fabric.shaper, versions=versions()
            )
        )
        ledger.record(
            ev.PhaseChanged(at_s=ledger.now(), name="network", done=1, total=1, detail=fabric.reason)
        )
        stack.callback(_ignore_signals)  # nothing interrupts the tidying up
        yield fabric, processes, ownership


@dataclass(slots=True)
class _Run:
    """The part of a run that lives on the event loop."""

    resolved: Resolved
    options: Options
    ledger: Ledger
    fabric: Fabric
    processes: Processes
    ownership: Ownership
    engines: dict[str, Engine] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    driver: Driver | None = None
    stopped: str | None = None

    async def main(self, screen: Screen, route: Route) -> str | None:
        """The whole of it; what stopped it early, if anything did."""
        task = asyncio.current_task()
        assert task is not None
        with self._stop_signals(task):
            try:
                async with screen(self.ledger), asyncio.TaskGroup() as group:
                    group.create_task(self.processes.watch(self._on_exit), name="zygote")
                    try:
                        await self._work(route)
                    finally:
                        self._phase("teardown")
                        await self.processes.close()
            except asyncio.CancelledError:
                if self.stopped is None:
                    raise
            except BaseExceptionGroup as errors:
                raise the_fault(errors) from errors
        return self.stopped

    async def _work(self, route: Route) -> None:
        model = await self._load()
        async with AsyncExitStack() as stack:
            await self._start_engines(stack)
            await self._measure_links()
            service = self._service(route, model)
            async with _meanwhile(
                watch_links(self.fabric, self.ledger),
                watch_engines(self.engines.values(), self.ledger),
                watch_machine(self.ledger),
            ):
                await self._drive(service, model)
            await self._verify()

    async def _load(self) -> ModelReady:
        self._phase("model", 0, 1)
        model = await self.processes.ready(self.resolved.scenario.engine.ready_timeout)
        detail = f"{model.title}: {model.parameters / 1e6:.1f} M parameters in {model.load_s:.1f} s"
        self._phase("model", 1, 1, detail)
        return model

    async def _start_engines(self, stack: AsyncExitStack) -> None:
        """All at once, each in its namespace; they are ready when their control sockets answer."""
        key = secrets.token_hex(32)
        topology = self.resolved.topology
        names = [(name, dc) for dc in topology.datacenters for name in topology.engine_names(dc)]
        self._phase("engines", 0, len(names))
        async with asyncio.TaskGroup() as group:
            for name, datacenter in names:
                group.create_task(self._start_engine(name, datacenter, key, len(names), stack), name=name)

    async def _start_engine(
        self, name: str, datacenter: str, key: str, total: int, stack: AsyncExitStack
    ) -> None:
        order = self._engine_order(name, datacenter, key)
        pid = await self.processes.fork(order, self.resolved.scenario.engine.ready_timeout)
        self.ownership.claim_process(pid)
        client = await stack.enter_async_context(ControlClient(name, order.control_socket))
        self.engines[name] = Engine(
            name=name,
            datacenter=datacenter,
            role=order.role,
            client=client,
            capacity=order.settings.max_batch if order.role == "decode" else 1,
        )
        self.ledger.record(
            ev.EngineStarted(
                at_s=self.ledger.now(),
                engine=name,
                datacenter=datacenter,
                role=order.role,
                netns=order.netns or "",
                pid=pid,
            )
        )
        self._phase("engines", len(self.engines), total)

    def _engine_order(self, name: str, datacenter: str, key: str) -> EngineOrder:
        scenario, node = self.resolved.scenario, self.fabric.nodes[name]
        ways = Ways(self.fabric).paths()
        longest = max(
            (way for way in ways if way.source == datacenter and way.rate_bps),
            key=lambda way: (way.rate_bps or 0.0) * way.rtt_s,
            default=None,
        )
        return EngineOrder(
            name=name,
            role=self.resolved.topology.engine_names(datacenter)[name],
            netns=node.netns,
            control_socket=str(self.ownership.sockets / f"{name}.sock"),
            log=str(self.options.out / f"{name}.log"),
            host=node.address,
            port=DATA_PORT,
            key_hex=key,
            settings=scenario.engine,
            transport=scenario.transport,
            path_rate_bps=longest.rate_bps if longest else None,
            path_rtt_s=longest.rtt_s if longest else None,
            corrupt=self.options.corrupt,
        )

    async def _measure_links(self) -> None:
        """Before anything else is on them. Raises FabricError when one is not what its spec says."""
        self._phase("links", 0, len(self.fabric.directions))
        faults: list[str] = []
        for measurement in await measure(self.fabric):
            reasons = tuple(judge(measurement, self.resolved.scenario.tolerance))
            faults += reasons
            self.ledger.record(
                ev.LinkMeasured(
                    at_s=self.ledger.now(),
                    link=measurement.link,
                    source=measurement.source,
                    configured_bps=measurement.configured_bps,
                    measured_bps=measurement.measured_bps,
                    configured_rtt_ms=1e3 * measurement.configured_rtt_s,
                    measured_rtt_ms=1e3 * measurement.measured_rtt_s,
                    reasons=reasons,
                )
            )
        self._phase("links", len(self.fabric.directions), len(self.fabric.directions))
        if faults and not self.options.allow_unfaithful:
            raise FabricError(
                "the network is not what the topology says: " + "; ".join(faults),
                remedy="quieten the machine, lower the rates (scale), or accept it with --allow-unfaithful",
            )

    def _service(self, route: Route, model: ModelReady) -> Service:
        topology, scenario = self.resolved.topology, self.resolved.scenario
        return Service(
            engines=self.engines,
            datacenters=tuple(
                DatacenterView(name=name, role=site.role) for name, site in topology.datacenters.items()
            ),
            network=Ways(self.fabric),
            route=route,
            plan=Plan(threshold_tokens=scenario.policy.threshold),
            expected_bytes=lambda tokens: model.state_bytes + model.token_bytes * tokens,
            ledger=self.ledger,
        )

    async def _drive(self, service: Service, model: ModelReady) -> None:
        scenario = self.resolved.scenario

        async def serve(request: Request) -> None:
            tokens = await service.serve(request)
            if tokens is not None and chosen(request.id, scenario.verify.share, scenario.seed):
                self.answers.append(Answer(request=request, tokens=tuple(tokens)))

        requests = generate(
            scenario.workload,
            seed=scenario.seed,
            vocab_size=model.vocab_size,
            duration_s=scenario.duration,
            time_scale=scenario.time_scale,
        )
        self.driver = Driver(scenario, requests, serve, self.ledger)
        await self.driver.run()

    async def _verify(self) -> None:
        """On as many cores as there are, now that the engines are idle."""
        if not self.answers:
            return
        verifiers = []
        for number in range(min(os.cpu_count() or 1, len(self.answers))):
            order = VerifierOrder(
                name=f"verifier-{number}",
                control_socket=str(self.ownership.sockets / f"verifier-{number}.sock"),
                log=str(self.options.out / "verifier.log"),
                chunk_tokens=self.resolved.scenario.engine.chunk,
            )
            pid = await self.processes.fork(order, self.resolved.scenario.engine.ready_timeout)
            self.ownership.claim_process(pid)
            verifiers.append((order.name, order.control_socket))
        await verify(self.answers, verifiers, self.ledger)

    def _on_exit(self, name: str, status: str) -> None:
        words = last_words(str(self.options.out / f"{name}.log"))
        self.ledger.record(
            ev.EngineDied(at_s=self.ledger.now(), engine=name, exit_status=status, last_words=words)
        )
        if name in self.engines:
            self.engines[name].alive = False

    @contextmanager
    def _stop_signals(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """SIGINT ends the arrivals and drains; a second one, or SIGTERM, gives up what is in flight."""
        loop = asyncio.get_running_loop()

        def give_up(name: str) -> None:
            if not task.cancelling():
                self.stopped = name
                self._note("warning", f"{name}: giving up what is in flight")
                task.cancel()

        def drain() -> None:
            if self.driver is None or self.driver.stop.is_set():
                give_up("SIGINT")
                return
            self.stopped = "SIGINT"
            self._note("warning", "SIGINT: no new requests; draining (again to stop at once)")
            self.driver.stop.set()

        loop.add_signal_handler(signal.SIGINT, drain)
        loop.add_signal_handler(signal.SIGTERM, give_up, "SIGTERM")
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
            _ignore_signals()

    def _phase(self, name: str, done: int | None = None, total: int | None = None, detail: str = "") -> None:
        event = ev.PhaseChanged(at_s=self.ledger.now(), name=name, done=done, total=total, detail=detail)
        self.ledger.record(event)

    def _note(self, level: str, text: str) -> None:
        self.ledger.record(ev.Noted(at_s=self.ledger.now(), level=level, text=text))


@asynccontextmanager
async def _meanwhile(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these beside the body, and cancel them when it ends."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
        yield
        for task in tasks:
            task.cancel()


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Outside the loop, SIGTERM interrupts as Ctrl-C does, so that what was made is taken down."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in _SIGNALS:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
