"""A deployment that serves whoever asks, until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from prfaas_lab.lab.deployment import Deployment, Options
from prfaas_lab.lab.meanwhile import meanwhile
from prfaas_lab.lab.session import Outcome, Screen, run_session
from prfaas_lab.lab.starting import scheduler_for
from prfaas_lab.metrics import events as ev
from prfaas_lab.spec.load import kind_of, load_scenario, load_topology
from prfaas_lab.spec.scenario import Fixed, Resolved, Scenario, Uniform, Verify, Workload


class Door(Protocol):
    """Through which clients come."""

    async def drain(self) -> None:
        """Let nobody in any more; returns when all who are inside have been served."""
        ...


Opener = Callable[[Deployment], AbstractAsyncContextManager[Door]]


def load_for_serving(path: Path, *, scale: float | None = None) -> tuple[Resolved, str]:
    """What to bring up for a topology (with a scenario's defaults) or a scenario, and a word on what of
    it does not count. Raises SpecError."""
    if kind_of(path) == "topology":
        topology = load_topology(path)
        scenario = Scenario(
            name=topology.name,
            topology=topology,
            workload=Workload(
                requests=1,
                arrivals=Uniform(kind="uniform", rate=1.0),
                prompt=Fixed(kind="fixed", tokens=1),
                output=Fixed(kind="fixed", tokens=1),
            ),
            scale=1.0 if scale is None else scale,
            verify=Verify(share=0.0),
        )
        return Resolved(scenario=scenario, topology=topology, source=str(path)), ""
    resolved = load_scenario(path)
    changes = {"verify": Verify(share=0.0)} | ({} if scale is None else {"scale": scale})
    resolved = resolved.model_copy(update={"scenario": resolved.scenario.model_copy(update=changes)})
    return resolved, "the scenario's workload and duration do not count: clients ask"


def run_serving(resolved: Resolved, options: Options, screen: Screen, opener: Opener, note: str) -> Outcome:
    """Serve until a signal, blocking, as `run_session` says. The first one drains."""
    return run_session(resolved, options, screen, _Serve(opener, note))


@dataclass(slots=True)
class _Serve:
    """Keeps the door open while the network goes through what it is meant to, and the plan follows."""

    draining_signals = frozenset({signal.SIGINT, signal.SIGTERM})
    opener: Opener
    note: str
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    open: bool = False

    async def run(self, deployment: Deployment) -> None:
        ledger = deployment.ledger
        if self.note:
            ledger.record(ev.Noted(at_s=ledger.now(), level="info", text=self.note))
        scheduler = scheduler_for(deployment.resolved, deployment.service, deployment.engines, ledger)
        beside = [deployment.conditions.run(endless=True), *([scheduler.run()] if scheduler else [])]
        async with meanwhile(*beside), self.opener(deployment) as door:
            ledger.record(ev.PhaseChanged(at_s=ledger.now(), name="running"))
            self.open = True
            await self.stop.wait()
            ledger.record(ev.PhaseChanged(at_s=ledger.now(), name="draining"))
            try:
                async with asyncio.timeout(deployment.resolved.scenario.drain_timeout):
                    await door.drain()
            except TimeoutError:
                text = "not drained in time: giving up what is in flight"
                ledger.record(ev.Noted(at_s=ledger.now(), level="warning", text=text))

    def drain(self) -> bool:
        if not self.open or self.stop.is_set():
            return False
        self.stop.set()
        return True
