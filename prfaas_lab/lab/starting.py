"""What a run starts with, by its policy. Light: a simulation that adapts nothing needs no planner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prfaas_lab.lab.engines import Engine
from prfaas_lab.lab.pacing import costs_of
from prfaas_lab.lab.service import Service
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.router import Plan
from prfaas_lab.spec.scenario import Policy, Resolved

if TYPE_CHECKING:
    from prfaas_lab.lab.scheduler import Scheduler

_KEPT = (
    "roles and the planned threshold stay: the long-term loop needs exactly one local datacenter, "
    "and profiles of what runs (paced engines, or hardware: FILE of prfaas-lab calibrate everywhere)"
)


def plan_of(policy: Policy) -> Plan:
    """The policy's plan, until somebody swaps in another."""
    return Plan(threshold_tokens=policy.threshold, offload_share=policy.share)


def convertible(resolved: Resolved, datacenter: str) -> bool:
    """Whether engines of a datacenter may have to change their role, so that they must have both."""
    scenario, topology = resolved.scenario, resolved.topology
    adapts = scenario.policy.name == "prfaas" and scenario.scheduler.convert and bool(topology.prfaas)
    return adapts and topology.local == (datacenter,) and costs_of(resolved) is not None


def scheduler_for(
    resolved: Resolved, service: Service, engines: Mapping[str, Engine], ledger: Ledger
) -> Scheduler | None:
    """The loops of a run: only the `prfaas` policy has them. Says so when instances will keep their roles
    though they were asked to change them."""
    scenario, topology = resolved.scenario, resolved.topology
    if scenario.policy.name != "prfaas" or not topology.prfaas:
        return None
    from prfaas_lab.lab.scheduler import Scheduler

    if scenario.scheduler.convert and not convertible(resolved, topology.local[0]):
        ledger.record(ev.Noted(at_s=ledger.now(), level="info", text=_KEPT))
    return Scheduler(resolved, service, engines, ledger)
