"""Changes by hand to a deployment that runs: its links and its policy; and what it looks like now."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from prfaas_lab.lab.deployment import Deployment
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.tally import Tally
from prfaas_lab.router import route_of
from prfaas_lab.spec.quantities import Duration, Tokens
from prfaas_lab.spec.scenario import Event
from prfaas_lab.spec.topology import Impairment, Name, Spec


class LinkChange(Impairment):
    """What becomes of a link now, in real-world units as in a topology. Unset keys stay as they are."""

    source: Name | None = Field(default=None, description="datacenter whose egress changes; unset: both")
    outage: Duration | None = Field(default=None, description="no bytes pass for this long")
    lasts: Duration | None = Field(default=None, description="undo it after this long; unset: for good")

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if (self.outage is None) == (not self.impairment.model_fields_set):
            raise ValueError("give an outage, or at least one of rate, delay, jitter, loss, ...")
        if self.outage is not None and self.lasts is not None:
            raise ValueError("an outage has its own length (drop lasts)")
        return self

    @property
    def impairment(self) -> Impairment:
        """The values to set, without the rest."""
        given = self.model_fields_set & Impairment.model_fields.keys()
        return Impairment(**{key: getattr(self, key) for key in given if getattr(self, key) is not None})

    def event(self, link: str) -> Event:
        """The same as an event of a scenario."""
        setting = None if self.outage is not None else self.impairment
        return Event(at=0.0, link=link, source=self.source, set=setting, outage=self.outage, lasts=self.lasts)


class PolicyChange(Spec):
    """Where prefill runs from now on. What is unset stays as it is."""

    name: str | None = Field(default=None, max_length=200, description="threshold, local-only, ...")
    threshold: Tokens | None = Field(default=None, description="uncached tokens above which to offload")

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.name is None and self.threshold is None:
            raise ValueError("give a name or a threshold")
        return self


async def change_link(deployment: Deployment, link: str, change: LinkChange) -> None:
    """Returns when it has taken effect. Raises FabricError for what cannot be."""
    await deployment.conditions.befall(change.event(link))


def change_policy(deployment: Deployment, change: PolicyChange) -> None:
    """Holds for every request routed from now on, and ends what adapts the plan. Raises LabError for a name
    that is not there, and for a policy that lacks what it needs here."""
    service, ledger = deployment.service, deployment.ledger
    name = change.name or ledger.tally.policy or deployment.resolved.scenario.policy.name
    asked = deployment.resolved.scenario.policy.model_copy(update={"name": name})
    has_costs = service.view().costs is not None
    route = service.route if change.name is None else route_of(asked, has_costs=has_costs)
    threshold = service.plan.threshold_tokens if change.threshold is None else change.threshold
    plan = replace(service.plan, threshold_tokens=threshold)  # another one, so that its scheduler sees it
    service.plan, service.route = plan, route
    ledger.record(
        ev.PlanChanged(
            at_s=ledger.now(), policy=name, threshold_tokens=plan.threshold_tokens, reason="set by hand"
        )
    )


def state(deployment: Deployment) -> dict[str, Any]:
    """The deployment now: what it runs, its plan, its requests, links and engines."""
    tally = deployment.ledger.tally
    run = tally.run
    return {
        "at_s": deployment.ledger.now(),
        "scenario": run.scenario if run else None,
        "topology": run.topology if run else None,
        "shaper": run.shaper if run else None,
        "model": deployment.model.title,
        "policy": tally.policy,
        "threshold_tokens": deployment.service.plan.threshold_tokens,
        "requests": {
            "submitted": tally.submitted,
            "completed": tally.completed,
            "failed": tally.failed,
            "in_flight": tally.in_flight,
            "offloaded": tally.offloaded,
        },
        "links": [_direction(deployment, tally, *direction) for direction in deployment.fabric.directions],
        "engines": [_engine(deployment, tally, name) for name in sorted(deployment.engines)],
    }


def _direction(deployment: Deployment, tally: Tally, link: str, source: str) -> dict[str, Any]:
    shape, seen = deployment.fabric.shape(link, source), tally.direction(link, source).last
    return {
        "link": link,
        "source": source,
        "destination": deployment.fabric.far_end(link, source),
        "rate_bps": shape.rate_bps,
        "delay_ms": 1e3 * shape.delay_s,
        "jitter_ms": 1e3 * shape.jitter_s,
        "bytes": seen.bytes_total if seen else 0,
        "dropped": seen.dropped_total if seen else 0,
        "backlog_bytes": seen.backlog_bytes if seen else 0,
    }


def _engine(deployment: Deployment, tally: Tally, name: str) -> dict[str, Any]:
    view, sample = deployment.engines[name].view, tally.engine(name).last
    role: Literal["prefill", "decode"] = view.role
    return {
        "name": name,
        "datacenter": view.datacenter,
        "role": role,
        "alive": view.alive,
        "orders": view.running + view.queued,
        "waiting_tokens": view.queued_tokens,
        "running": sample.running if sample else 0,
        "queued": sample.queued if sample else 0,
        "busy_s": sample.busy_s if sample else 0.0,
        "tokens": sample.tokens_total if sample else 0,
    }
