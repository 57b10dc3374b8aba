"""What every run shares, whatever it does with its deployment: bring up, signals, files, tidying up."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import uvloop

from prfaas_lab.lab.deployment import Deployment, Foundation, Options, bring_up
from prfaas_lab.lab.faults import the_fault
from prfaas_lab.lab.pacing import costs_of
from prfaas_lab.lab.results import results_in, write_results
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.files import EventWriter
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.router import Route, route_of
from prfaas_lab.spec.scenario import Resolved

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_ONE_KEYPRESS_S = 0.5
"""`timeout` and the like pass on a Ctrl-C that the terminal has sent us already: that is one, not two."""

Screen = Callable[[Ledger], AbstractAsyncContextManager[Any]]
"""Opens whatever shows the run while it goes on."""


class Work(Protocol):
    """What a run does with its deployment."""

    draining_signals: frozenset[signal.Signals]
    """Which signals ask it to drain; the others, and a second one, give up what is in flight."""

    async def run(self, deployment: Deployment) -> None:
        """All of it. Raises LabError."""
        ...

    def drain(self) -> bool:
        """Take on nothing new and let `run` end by itself. False if it does so already, or cannot."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run that is over. `stopped` names the signal that ended it early, if one did."""

    summary: dict[str, Any]
    stopped: str | None


def run_session(resolved: Resolved, options: Options, screen: Screen, work: Work) -> Outcome:
    """Run it, blocking; the outcome also lies in `options.out` as files (architecture.md).

    Whatever happens, nothing is left on the machine. Raises LabError when the run could not be
    brought up, or its network broke down; what happened until then is in `events.jsonl`, and if
    requests were served already, in a summary that is INVALID and names the `fault`.
    """
    has_costs = costs_of(resolved) is not None
    route = route_of(resolved.scenario.policy, has_costs=has_costs)  # before anything is made
    with results_in(options.out, resolved):
        return _run(resolved, options, screen, work, route)


def _run(resolved: Resolved, options: Options, screen: Screen, work: Work, route: Route) -> Outcome:
    ledger = Ledger(time.monotonic, time.monotonic())
    shown = screen(ledger)  # before the first event, so that it misses none
    stopped = None
    with _signals_interrupt(), EventWriter(options.out / "events.jsonl") as writer:
        ledger.subscribe(writer)
        try:
            with ExitStack() as stack:
                foundation = stack.enter_context(bring_up(resolved, options, ledger))
                stack.callback(_ignore_signals)  # nothing interrupts the tidying up
                stopped = uvloop.run(_Session(foundation, work).main(shown, route))
        except KeyboardInterrupt as interrupt:
            stopped = str(interrupt) or "SIGINT"
        except Exception as error:
            if ledger.tally.started_s is not None:
                write_results(options.out, ledger.tally, fault=str(error))
            raise
        ledger.record(ev.PhaseChanged(at_s=ledger.now(), name="done"))
    return Outcome(summary=write_results(options.out, ledger.tally, stopped=stopped), stopped=stopped)


@dataclass(slots=True)
class _Session:
    """The part of a run that lives on the event loop."""

    foundation: Foundation
    work: Work
    stopped: str | None = None
    drains_since: float | None = None

    async def main(self, shown: AbstractAsyncContextManager[Any], route: Route) -> str | None:
        """The whole of it; what stopped it early, if anything did."""
        task = asyncio.current_task()
        assert task is not None
        with self._stop_signals(task):
            try:
                async with shown, self.foundation.deploy(route) as deployment:
                    await self.work.run(deployment)
            except asyncio.CancelledError:
                if self.stopped is None:
                    raise
            except BaseExceptionGroup as errors:
                raise the_fault(errors) from errors
        return self.stopped

    @contextmanager
    def _stop_signals(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """A signal drains or gives up, as the work has it; a closed terminal (SIGHUP) is one too."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop, number, task)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
            _ignore_signals()

    def _stop(self, number: signal.Signals, task: asyncio.Task[Any]) -> None:
        now = asyncio.get_running_loop().time()
        draining = number in self.work.draining_signals
        if draining and self.drains_since is not None and now - self.drains_since < _ONE_KEYPRESS_S:
            return
        if draining and self.work.drain():
            self.stopped, self.drains_since = number.name, now
            self._note(f"{number.name}: no new requests; draining (again to stop at once)")
        elif not task.cancelling():
            self.stopped = number.name
            self._note(f"{number.name}: giving up what is in flight")
            task.cancel()

    def _note(self, text: str) -> None:
        ledger = self.foundation.ledger
        ledger.record(ev.Noted(at_s=ledger.now(), level="warning", text=text))


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
