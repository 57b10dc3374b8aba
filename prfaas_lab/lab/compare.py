"""`compare`: the same workload and seeds under several policies, each measured beside its prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from prfaas_lab.errors import LabError
from prfaas_lab.lab.arrange import Arranged, arrange
from prfaas_lab.lab.deployment import Options
from prfaas_lab.lab.run import run_scenario
from prfaas_lab.lab.simulate import Simulation, simulate
from prfaas_lab.planner.deployment import Deployment
from prfaas_lab.router import policy as policy_of
from prfaas_lab.spec.scenario import Resolved, Scenario
from prfaas_lab.spec.workload import ClosedLoop

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over seeds, with its confidence interval; without one (None) when there is one seed."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Student's t: a handful of seeds is all there is."""
        mean = math.fsum(values) / len(values)
        if len(values) == 1:
            return cls(mean=mean, low=None, high=None, values=tuple(values))
        from scipy.stats import t

        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * math.sqrt(variance / len(values))
        return cls(mean=mean, low=mean - half, high=mean + half, values=tuple(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run's steady state, in seconds of the real world (before `time_scale` and `scale`)."""

    policy: str
    seed: int
    throughput: float
    offered: float | None
    """Requests that came per second; None in a closed loop, which offers as many as are served."""
    mean_ttft_s: float
    p90_ttft_s: float
    offload_fraction: float
    egress_bps: float
    completed: int
    failed: int
    verdict: str
    reasons: tuple[str, ...]
    out: str


CACHE_OFF = "@cache-off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy: its runs, its prediction, and the reference policy's gain over it."""

    policy: str
    deployment: str
    threshold_tokens: int | None
    predicted: Deployment | None
    runs: tuple[Measured, ...]
    throughput: Interval
    p90_ttft_s: Interval
    mean_ttft_s: Interval
    offload_fraction: Interval
    gain: Interval
    """The reference's throughput over this one's, seed by seed."""
    ttft_gain: Interval
    """This one's p90 TTFT over the reference's, seed by seed."""

    @property
    def error(self) -> float | None:
        """Measured throughput over the predicted one, less 1. None without a prediction, and where too
        little came to show what the deployment can do."""
        if self.predicted is None or not self.saturated:
            return None
        return self.throughput.mean / self.predicted.lambda_max - 1

    @property
    def saturated(self) -> bool:
        """Whether every run was offered at least what the model predicts to be served."""
        most = self.predicted.lambda_max if self.predicted else 0.0
        return all(run.offered is None or run.offered >= most for run in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `compare` found. The first policy is the reference."""

    scenario: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "scenario": self.scenario,
            "seeds": list(self.seeds),
            "reference": self.rows[0].policy,
            "confidence": CONFIDENCE,
            "policies": {
                row.policy: asdict(row) | {"error": row.error, "saturated": row.saturated}
                for row in self.rows
            },
        }


def compare(
    resolved: Resolved,
    policies: Sequence[str],
    *,
    seeds: int,
    options: Options,
    simulated: bool = False,
    tell: Callable[[Measured], None],
) -> Comparison:
    """Run every policy with every seed, one after the other; `tell` hears of each run as it ends.
    `simulated`: on the virtual clock instead of under emulation.

    A policy written as `name@cache-off` runs without the prefix cache.

    Seed by seed and not policy by policy, so that a machine that slows down slows all policies alike.
    Raises LabError when a policy does not exist or cannot be deployed, before anything runs, or when
    a run was stopped.
    """
    arranged = {name: _arranged(resolved, name) for name in policies}
    first = resolved.scenario.seed
    numbers = tuple(range(first, first + seeds))
    runs: dict[str, list[Measured]] = {name: [] for name in policies}
    for seed in numbers:
        for name in policies:
            measured = _run(arranged[name], name, seed, options, simulated)
            runs[name].append(measured)
            tell(measured)
    rows = tuple(_row(arranged[name], name, runs[name], runs[policies[0]]) for name in policies)
    return Comparison(scenario=resolved.scenario.name, seeds=numbers, rows=rows)


def _arranged(resolved: Resolved, name: str) -> Arranged:
    policy, without_cache = name.removesuffix(CACHE_OFF), name.endswith(CACHE_OFF)
    policy_of(policy)
    if without_cache:
        scenario = resolved.scenario.model_copy(update={"cache": "off"})
        resolved = resolved.model_copy(update={"scenario": scenario})
    return arrange(resolved, policy)


def _run(arranged: Arranged, name: str, seed: int, options: Options, simulated: bool) -> Measured:
    scenario = arranged.resolved.scenario
    resolved = arranged.resolved.model_copy(update={"scenario": scenario.model_copy(update={"seed": seed})})
    out = options.out / f"{name.replace(':', '.')}-{seed}"
    if simulated:
        summary = simulate(resolved, Simulation(out=out))
    else:
        summary = run_scenario(resolved, replace(options, out=out), lambda ledger: nullcontext()).summary
    if summary["stopped"] is not None:
        raise LabError(f"stopped by {summary['stopped']}", where=str(out))
    steady = summary["steady"]
    if (missing := _missing(steady)) is not None:
        raise _nothing_to_compare(summary, missing, str(out))
    return Measured(
        policy=name,
        seed=seed,
        throughput=steady["request_throughput"] * scenario.time_scale,
        offered=_offered(scenario, summary),
        mean_ttft_s=steady["mean_ttft_ms"] / 1e3 / scenario.time_scale,
        p90_ttft_s=steady["p90_ttft_ms"] / 1e3 / scenario.time_scale,
        offload_fraction=steady["offload_fraction"],
        egress_bps=steady["offloaded_bps"] / scenario.scale * scenario.time_scale,
        completed=steady["completed"],
        failed=summary["failed"],
        verdict=summary["fidelity"]["verdict"],
        reasons=tuple(summary["fidelity"]["reasons"]),
        out=str(out),
    )


def _missing(steady: Mapping[str, Any]) -> str | None:
    """What no request did in the steady state, of what runs are compared by."""
    figures = {
        "ended": steady["completed"] or None,
        "was routed": steady["offload_fraction"],
        "had its first token": steady["mean_ttft_ms"],
    }
    return next((what for what, figure in figures.items() if figure is None), None)


def _nothing_to_compare(summary: Mapping[str, Any], missing: str, where: str) -> LabError:
    if summary["failed"]:
        reason = summary["failures"][0]["reason"]
        return LabError(
            f"{summary['failed']} of {summary['submitted']} requests failed: {reason}", where=where
        )
    remedy = "lengthen duration, or shorten warm_up"
    return LabError(f"no request {missing} in the steady state", where=where, remedy=remedy)


def _offered(scenario: Scenario, summary: Mapping[str, Any]) -> float | None:
    if isinstance(scenario.workload.arrivals, ClosedLoop):
        return None
    steady = summary["steady"]
    arrivals_s: float = (steady["until"] - steady["since"]) / scenario.time_scale + scenario.warm_up
    submitted: int = summary["submitted"]
    return submitted / arrivals_s


def _row(arranged: Arranged, name: str, runs: list[Measured], reference: list[Measured]) -> Row:
    pairs = list(zip(reference, runs, strict=True))
    policy = arranged.resolved.scenario.policy
    remote = arranged.predicted.p > 0 if arranged.predicted else True
    return Row(
        policy=name,
        deployment=_roles(arranged.resolved),
        threshold_tokens=policy.threshold if name in ("prfaas", "threshold") and remote else None,
        predicted=arranged.predicted,
        runs=tuple(runs),
        throughput=Interval.of([run.throughput for run in runs]),
        p90_ttft_s=Interval.of([run.p90_ttft_s for run in runs]),
        mean_ttft_s=Interval.of([run.mean_ttft_s for run in runs]),
        offload_fraction=Interval.of([run.offload_fraction for run in runs]),
        gain=Interval.of([theirs.throughput / ours.throughput for theirs, ours in pairs]),
        ttft_gain=Interval.of([ours.p90_ttft_s / theirs.p90_ttft_s for theirs, ours in pairs]),
    )


def _roles(resolved: Resolved) -> str:
    """N_prfaas / N_p / N_d over all sites, as the paper writes them."""
    sites = resolved.topology.datacenters.values()
    remote = sum(site.engines.prefill for site in sites if site.role == "prfaas")
    local = [site.engines for site in sites if site.role == "local"]
    prefill, decode = sum(each.prefill for each in local), sum(each.decode for each in local)
    return f"{remote or '-'}/{prefill or '-'}/{decode}"
