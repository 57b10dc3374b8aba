"""`plan`: from a file or its value to every policy's best deployment, in both modes, and the limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prfaas_lab.model.profile import Floats
from prfaas_lab.planner import lengths
from prfaas_lab.planner.bound import Bound, best_rate
from prfaas_lab.planner.deployment import Deployment, PolicyName
from prfaas_lab.planner.fleet import Fleet, fleet_of
from prfaas_lab.planner.grid import grid
from prfaas_lab.planner.lengths import LengthLaw, law_of
from prfaas_lab.planner.roles import role_choices
from prfaas_lab.planner.search import deploy
from prfaas_lab.planner.setting import Extensions, Setting
from prfaas_lab.planner.whole_lengths import whole_lengths
from prfaas_lab.spec import kind_of, load_scenario, load_topology
from prfaas_lab.spec.scenario import Fixed, Lengths, LogNormal, Resolved
from prfaas_lab.spec.topology import Topology

CASE_PROMPT = LogNormal(kind="lognormal", mu=9.90, sigma=1.00, min=128, max=131072)
CASE_OUTPUT = Fixed(kind="fixed", tokens=1024)
"""The case study's workload (the paper, 4.1), and the default where a topology comes without one."""
BASELINES: tuple[PolicyName, ...] = ("homogeneous", "naive", "balanced")
HEAT_THRESHOLDS = 48


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heat:
    """Equation 6's Lambda_max over thresholds (columns) and total local prefill instances (rows)."""

    thresholds: Floats
    n_p: tuple[int, ...]
    rate: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What `prfaas-lab plan` says of a file."""

    name: str
    source: str
    prompt: Lengths | None
    output: Lengths | None
    """As the file gives them; None where it is a trace that has them."""
    prompts: LengthLaw
    """Of whole prompts, as planned for: with sessions, longer than what each request adds."""
    output_tokens: float
    """The mean answer."""
    workload_assumed: bool
    """Whether the workload is the case study's, for want of one in the file."""
    fleet: Fleet
    extensions: Extensions
    deployments: Mapping[PolicyName, Deployment]
    """At the mean lengths, as the paper's equations are written."""
    exact: Mapping[PolicyName, Deployment]
    """With the mean of T over each class: what a running system shows."""
    bound: Bound
    """The best over all length-dependent routings, in exact terms."""
    heat: Heat | None
    """Paper mode; None without a PrfaaS site."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON. `ratios` are each deployment's lambda_max to the homogeneous one's."""
        return {
            "name": self.name,
            "source": self.source,
            "workload": {
                "prompt": self.prompt and self.prompt.model_dump(mode="json"),
                "output": self.output and self.output.model_dump(mode="json"),
                "assumed": self.workload_assumed,
                "mean_prompt_tokens": lengths.mean(self.prompts),
                "mean_output_tokens": self.output_tokens,
            },
            "fleet": _fleet_dict(self.fleet),
            "extensions": {key: value for key, value in asdict(self.extensions).items() if value is not None},
            "deployments": {name: one.as_dict() for name, one in self.deployments.items()},
            "exact": {name: one.as_dict() for name, one in self.exact.items()},
            "ratios": {"deployments": ratios(self.deployments), "exact": ratios(self.exact)},
            "bound": {
                "lambda_max": self.bound.lambda_max,
                "n_p": dict(self.bound.n_p),
                "is_threshold": self.bound.is_threshold,
                "shortfall": {name: self.bound.shortfall(one.lambda_max) for name, one in self.exact.items()},
            },
        }


def plan(
    what: str | Path | Resolved | Topology,
    *,
    against: Iterable[PolicyName] = BASELINES,
    extensions: Extensions | None = None,
) -> PlanReport:
    """Plan a topology or scenario, given as a file or as its value.

    A topology alone is planned with the case study's workload. Raises SpecError for what is wrong in
    the file or lacks a profile, LabError when nothing can be deployed.
    """
    value = _load(what) if isinstance(what, str | Path) else what
    source = str(what) if isinstance(what, str | Path) else ""
    if isinstance(value, Resolved):
        name, topology, workload, source = (
            value.scenario.name,
            value.topology,
            value.scenario.workload,
            value.source,
        )
        prompt, output = workload.prompt, workload.output
        prompts, output_tokens = whole_lengths(value.scenario)
    else:
        name, topology, prompt, output = value.name, value, CASE_PROMPT, CASE_OUTPUT
        prompts, output_tokens = law_of(CASE_PROMPT), lengths.mean(law_of(CASE_OUTPUT))
    setting = Setting(
        fleet=fleet_of(topology, source=source),
        prompts=prompts,
        output_tokens=output_tokens,
        extensions=extensions or Extensions(),
    )
    return _report(setting, name, source, prompt, output, not isinstance(value, Resolved), tuple(against))


def _report(
    setting: Setting,
    name: str,
    source: str,
    prompt: Lengths | None,
    output: Lengths | None,
    assumed: bool,
    against: tuple[PolicyName, ...],
) -> PlanReport:
    exact_setting = replace(setting, mode="exact")
    policies: tuple[PolicyName, ...] = ("prfaas", *(one for one in against if one != "prfaas"))
    paper, exact = deploy(setting, policies), deploy(exact_setting, policies)
    cuts = [one.threshold_tokens for one in exact.values() if one.threshold_tokens is not None]
    return PlanReport(
        name=name,
        source=source,
        prompt=prompt,
        output=output,
        prompts=setting.prompts,
        output_tokens=setting.output_tokens,
        workload_assumed=assumed,
        fleet=setting.fleet,
        extensions=setting.extensions,
        deployments=paper,
        exact=exact,
        bound=best_rate(exact_setting, thresholds=cuts),
        heat=_heat(setting, paper["prfaas"].threshold_tokens or 0) if setting.fleet.prfaas else None,
    )


def _heat(setting: Setting, threshold: float) -> Heat:
    """The grid that the search went over, thinned out for the eye, the best threshold kept."""
    roles = role_choices(setting.fleet)
    low, high = setting.lengths.support
    spaced = np.geomspace(max(low, high / 256, 1.0), max(high, 2.0), HEAT_THRESHOLDS)
    cuts = np.unique(np.append(np.round(spaced), threshold))
    table = grid(setting, cuts, roles).rate
    totals = [sum(choice.values()) for choice in roles]
    rows = {total: np.max(table[[i for i, t in enumerate(totals) if t == total]], axis=0) for total in totals}
    return Heat(thresholds=cuts, n_p=tuple(sorted(rows)), rate=np.stack([rows[key] for key in sorted(rows)]))


def ratios(deployments: Mapping[PolicyName, Deployment]) -> dict[str, float]:
    """Each lambda_max over the homogeneous one's; empty without that baseline."""
    base = deployments.get("homogeneous")
    if base is None or base.lambda_max <= 0:
        return {}
    return {name: one.lambda_max / base.lambda_max for name, one in deployments.items()}


def _load(path: str | Path) -> Resolved | Topology:
    return load_topology(path) if kind_of(path) == "topology" else load_scenario(path)


def _fleet_dict(fleet: Fleet) -> dict[str, Any]:
    def sites(which: str) -> list[dict[str, Any]]:
        return [
            {"name": site.name, "hardware": site.profile.hardware, "instances": site.instances}
            for site in getattr(fleet, which)
        ]

    caps = [{"name": cap.name, "rate_bps": cap.rate_bps, "pairs": sorted(cap.pairs)} for cap in fleet.caps]
    return {"prfaas": sites("prfaas"), "local": sites("local"), "caps": caps}
