"""One run of a scenario: bring everything up, drive, drain, verify, and take it all down again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop

from prfaas_lab.lab.deployment import Deployment, Foundation, Options, bring_up, meanwhile
from prfaas_lab.lab.drive import Driver
from prfaas_lab.lab.faults import the_fault
from prfaas_lab.lab.verify import Answer, chosen, verify
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.files import EventWriter, write_requests, write_summary
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.metrics.summary import summarize
from prfaas_lab.router import Route, policy
from prfaas_lab.spec.dump import dump
from prfaas_lab.spec.scenario import Resolved
from prfaas_lab.workload.generate import generate
from prfaas_lab.workload.request import Request

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Screen = Callable[[Ledger], AbstractAsyncContextManager[Any]]
"""Opens whatever shows the run while it goes on."""


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
    shown = screen(ledger)  # before the first event, so that it misses none
    stopped = None
    with _signals_interrupt(), EventWriter(options.out / "events.jsonl") as writer:
        ledger.subscribe(writer)
        try:
            with ExitStack() as stack:
                foundation = stack.enter_context(bring_up(resolved, options, ledger))
                stack.callback(_ignore_signals)  # nothing interrupts the tidying up
                stopped = uvloop.run(_Run(foundation).main(shown, route))
        except KeyboardInterrupt as interrupt:
            stopped = str(interrupt) or "SIGINT"
        ledger.record(ev.PhaseChanged(at_s=ledger.now(), name="done"))
    summary = {**summarize(ledger.tally), "stopped": stopped}
    write_requests(options.out / "requests.jsonl", ledger.tally.requests.values())
    write_summary(options.out / "summary.json", summary)
    return Outcome(summary=summary, stopped=stopped)


@dataclass(slots=True)
class _Run:
    """The part of a run that lives on the event loop."""

    foundation: Foundation
    answers: list[Answer] = field(default_factory=list)
    driver: Driver | None = None
    stopped: str | None = None

    async def main(self, shown: AbstractAsyncContextManager[Any], route: Route) -> str | None:
        """The whole of it; what stopped it early, if anything did."""
        task = asyncio.current_task()
        assert task is not None
        with self._stop_signals(task):
            try:
                async with shown, self.foundation.deploy(route) as deployment:
                    await self._drive(deployment)
                    await self._verify(deployment)
            except asyncio.CancelledError:
                if self.stopped is None:
                    raise
            except BaseExceptionGroup as errors:
                raise the_fault(errors) from errors
        return self.stopped

    async def _drive(self, deployment: Deployment) -> None:
        scenario = deployment.resolved.scenario

        async def serve(request: Request) -> None:
            tokens = await deployment.service.serve(request)
            if tokens is not None and chosen(request.id, scenario.verify.share, scenario.seed):
                self.answers.append(Answer(request=request, tokens=tuple(tokens)))

        requests = generate(
            scenario.workload,
            seed=scenario.seed,
            vocab_size=deployment.model.vocab_size,
            duration_s=scenario.duration,
            time_scale=scenario.time_scale,
        )
        self.driver = Driver(scenario, requests, serve, self.foundation.ledger)
        async with meanwhile(deployment.conditions.run()):
            await self.driver.run()

    async def _verify(self, deployment: Deployment) -> None:
        """On as many cores as there are, now that the engines are idle."""
        wanted = min(os.cpu_count() or 1, len(self.answers))
        verifiers = [await deployment.start_verifier(number) for number in range(wanted)]
        if verifiers:
            await verify(self.answers, verifiers, self.foundation.ledger)

    @contextmanager
    def _stop_signals(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """SIGINT ends the arrivals and drains; a second, or another signal, gives up what is in flight."""
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
        for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal hangs up
            loop.add_signal_handler(number, give_up, number.name)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
            _ignore_signals()

    def _note(self, level: str, text: str) -> None:
        ledger = self.foundation.ledger
        ledger.record(ev.Noted(at_s=ledger.now(), level=level, text=text))


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Outside the loop, every signal interrupts as Ctrl-C does, so that what was made is taken down."""
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
