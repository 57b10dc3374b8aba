"""One run of a scenario: bring everything up, drive, drain, verify, and take it all down again."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

from prfaas_lab.lab.deployment import Deployment, Options
from prfaas_lab.lab.drive import Driver
from prfaas_lab.lab.meanwhile import meanwhile
from prfaas_lab.lab.session import Outcome, Screen, run_session
from prfaas_lab.lab.starting import scheduler_for
from prfaas_lab.lab.verify import Answer, chosen, verify
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.spec.scenario import Resolved
from prfaas_lab.workload.generate import generate
from prfaas_lab.workload.request import Request

__all__ = ["Outcome", "run_scenario"]


def run_scenario(resolved: Resolved, options: Options, screen: Screen) -> Outcome:
    """Run it, blocking, as `run_session` says. Ctrl-C ends the arrivals and drains."""
    return run_session(resolved, options, screen, _Drive())


@dataclass(slots=True)
class _Drive:
    """Drives the scenario's workload, then verifies a share of the answers."""

    draining_signals = frozenset({signal.SIGINT})
    answers: list[Answer] = field(default_factory=list)
    driver: Driver | None = None

    async def run(self, deployment: Deployment) -> None:
        await self._drive(deployment)
        await self._verify(deployment)

    def drain(self) -> bool:
        if self.driver is None or self.driver.stop.is_set():
            return False
        self.driver.stop.set()
        return True

    async def _drive(self, deployment: Deployment) -> None:
        scenario = deployment.resolved.scenario

        async def serve(request: Request) -> Sequence[int] | None:
            tokens = await deployment.service.serve(request)
            checked = tokens is not None and chosen(request.id, scenario.verify.share, scenario.seed)
            if tokens is not None and checked and deployment.model.vocab_size is not None:
                self.answers.append(Answer(request=request, tokens=tuple(tokens)))
            elif checked:
                _payload_verified(request, deployment.ledger)
            return tokens

        requests = generate(
            scenario.workload,
            seed=scenario.seed,
            vocab_size=deployment.model.vocab_size,
            duration_s=scenario.duration,
            time_scale=scenario.time_scale,
        )
        self.driver = Driver(scenario, requests, serve, deployment.ledger)
        scheduler = scheduler_for(
            deployment.resolved, deployment.service, deployment.engines, deployment.ledger
        )
        adapting = [scheduler.run()] if scheduler else []
        async with meanwhile(deployment.conditions.run(), *adapting):
            await self.driver.run()

    async def _verify(self, deployment: Deployment) -> None:
        """On as many cores as there are, now that the engines are idle."""
        wanted = min(os.cpu_count() or 1, len(self.answers))
        verifiers = [await deployment.start_verifier(number) for number in range(wanted)]
        if verifiers:
            lossy = deployment.resolved.scenario.transport.lossy
            await verify(self.answers, verifiers, deployment.ledger, lossy=lossy)


def _payload_verified(request: Request, ledger: Ledger) -> None:
    """A paced engine takes no cache into its batch whose payload differs from what was sent, and the
    service fails a transfer whose bytes are not the layout's: who was served was compared."""
    ledger.record(ev.RequestVerified(at_s=ledger.now(), request_id=request.id, outcome="match"))
