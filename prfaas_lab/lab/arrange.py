"""A scenario as a policy would deploy it: the same instances, in the roles that the planner gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prfaas_lab.planner.deployment import Deployment, PolicyName
from prfaas_lab.planner.fleet import fleet_of
from prfaas_lab.planner.search import deploy
from prfaas_lab.planner.setting import Setting
from prfaas_lab.planner.whole_lengths import whole_lengths
from prfaas_lab.router import route_of
from prfaas_lab.spec.scenario import Policy, Resolved, Scenario
from prfaas_lab.spec.topology import Engines, Topology

_PLANNED: Mapping[str, PolicyName] = {
    "prfaas": "prfaas",
    "threshold": "prfaas",
    "homogeneous": "homogeneous",
    "naive": "naive",
    "remote-all": "naive",
    "balanced": "balanced",
}
"""Which deployment a policy is given. Any other policy gets that of `prfaas`, and no prediction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arranged:
    """A scenario ready to run under a policy. `predicted` is the exact throughput model's word on it."""

    resolved: Resolved
    predicted: Deployment | None


def arrange(resolved: Resolved, policy: str) -> Arranged:
    """The scenario with the policy, and where its engines are paced, with the roles, threshold and share
    that suit the policy best. Raises LabError when the policy cannot be deployed on this topology."""
    if resolved.scenario.engine.executor != "paced":
        as_it_is = _with(resolved, resolved.topology, name=policy)
        route_of(as_it_is.scenario.policy)
        return Arranged(resolved=as_it_is, predicted=None)
    setting = _setting(resolved)
    planned = _PLANNED.get(policy)
    name: PolicyName = planned or ("prfaas" if setting.fleet.prfaas else "homogeneous")
    deployment = deploy(setting, [name])[name]
    topology = deployed(resolved.topology, deployment)
    options: dict[str, Any] = {"name": policy}
    if deployment.threshold_tokens is not None:
        options["threshold"] = deployment.threshold_tokens
    if deployment.policy == "balanced":
        options["share"] = deployment.p
    predicted = deployment if planned else None
    return Arranged(resolved=_with(resolved, topology, **options), predicted=predicted)


def deployed(topology: Topology, deployment: Deployment) -> Topology:
    """The topology with the deployment's roles. Its homogeneous one has no PrfaaS sites: their instances
    are local ones there, of local hardware."""
    sites = {}
    for name, site in topology.datacenters.items():
        if site.role == "prfaas" and deployment.policy == "homogeneous":
            continue
        if name in deployment.roles:
            prefill, decode = deployment.roles[name]
            site = site.model_copy(update={"engines": Engines(prefill=prefill, decode=decode)})
        sites[name] = site
    links = {name: link for name, link in topology.links.items() if set(link.between) <= sites.keys()}
    return topology.model_copy(update={"datacenters": sites, "links": links})


def _setting(resolved: Resolved) -> Setting:
    prompts, output_tokens = whole_lengths(resolved.scenario)
    return Setting(
        fleet=fleet_of(resolved.topology, source=resolved.source),
        prompts=prompts,
        output_tokens=output_tokens,
        mode="exact",
    )


def _with(resolved: Resolved, topology: Topology, **policy: Any) -> Resolved:
    """What befalls links that are no longer there is left out."""
    scenario = resolved.scenario
    given = {key: value for key, value in scenario.policy.model_dump().items() if value is not None}
    fields = {name: getattr(scenario, name) for name in Scenario.model_fields} | {
        "policy": Policy.model_validate(given | policy),
        "topology": topology,
        "fluctuations": tuple(each for each in scenario.fluctuations if each.link in topology.links),
        "events": tuple(each for each in scenario.events if each.link in topology.links),
    }
    return resolved.model_copy(update={"scenario": scenario.model_copy(update=fields), "topology": topology})
