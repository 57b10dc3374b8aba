"""The highest arrival rate that a deployment bears within an SLO, by bisection over simulations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prfaas_lab.errors import LabError, UsageError
from prfaas_lab.lab.simulate import Simulation, simulate
from prfaas_lab.spec.scenario import ClosedLoop, OnOff, Resolved, Scenario, TraceFile
from prfaas_lab.units import parse_duration

_FACTOR_LIMIT = 1024.0
_STATISTICS = {"mean": "mean", "p50": "median", "median": "median", "p90": "p90", "p99": "p99"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """One latency of the SLO, in seconds of the real world."""

    name: str
    key: str
    """In a summary, in ms."""
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A rate that was tried. `worst` is the bound that came nearest to, or furthest beyond, its limit."""

    rate: float
    """In what `unit_of` says."""
    holds: bool
    worst: str
    share: float
    summary: Mapping[str, Any]


def slo_of(text: str) -> tuple[Bound, ...]:
    """`ttft_p90=5s,tpot_p99=50ms`. Raises UsageError for what is not of that form."""
    bounds = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(ttft|tpot|itl|e2el)_(mean|median|p50|p90|p99)\s*=\s*(\S+)\s*", part)
        if found is None:
            raise UsageError(
                f"{part!r} is no bound",
                where="--slo",
                remedy="write ttft_p90=5s,tpot_p99=50ms: ttft, tpot, itl or e2el; mean, p50, p90 or p99",
            )
        what, statistic, limit = found.groups()
        key, limit_s = f"{_STATISTICS[statistic]}_{what}_ms", parse_duration(limit)
        if not limit_s:
            raise UsageError(f"{part!r} can never hold", where="--slo", remedy="allow more than no time")
        bounds.append(Bound(name=f"{what}_{statistic}", key=key, limit_s=limit_s))
    return tuple(bounds)


def capacity(
    resolved: Resolved, slo: tuple[Bound, ...], *, precision: float, told: Callable[[Trial], None]
) -> tuple[Trial | None, list[Trial]]:
    """The best trial that held, within `precision` (a share) of one that did not; and all of them.

    None when no rate held. Raises LabError for a workload without a rate.
    """
    base, trials = _rate(resolved.scenario), list[Trial]()

    def holds(factor: float) -> bool:
        trial = _try(_at(resolved, factor), base * factor, slo)
        trials.append(trial)
        told(trial)
        return trial.holds

    low = high = 1.0
    if holds(1.0):
        while holds(high := 2 * low):
            low = high
            if high >= _FACTOR_LIMIT:
                break
    else:
        while not holds(low := high / 2):
            high = low
            if low <= 1 / _FACTOR_LIMIT:
                return None, trials
    while high / low > 1 + precision:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return max((trial for trial in trials if trial.holds), key=lambda trial: trial.rate), trials


def unit_of(scenario: Scenario) -> str:
    """What a trial's rate counts: with sessions, what arrives are whole conversations."""
    if isinstance(scenario.workload.arrivals, TraceFile):
        return "times the trace's rate"
    return "sessions/s" if scenario.workload.sessions is not None else "req/s"


def _rate(scenario: Scenario) -> float:
    arrivals = scenario.workload.arrivals
    if isinstance(arrivals, ClosedLoop):
        raise LabError(
            "a closed loop has no arrival rate", where="workload.arrivals", remedy="use kind: poisson"
        )
    return arrivals.rate_factor if isinstance(arrivals, TraceFile) else arrivals.rate


def _at(resolved: Resolved, factor: float) -> Resolved:
    scenario = resolved.scenario
    arrivals = scenario.workload.arrivals
    assert not isinstance(arrivals, ClosedLoop), "refused above"
    if isinstance(arrivals, TraceFile):
        faster: dict[str, float] = {"rate_factor": arrivals.rate_factor * factor}
    else:
        faster = {"rate": arrivals.rate * factor}
    if isinstance(arrivals, OnOff):
        faster["off_rate"] = arrivals.off_rate * factor
    workload = scenario.workload.model_copy(update={"arrivals": arrivals.model_copy(update=faster)})
    return resolved.model_copy(update={"scenario": scenario.model_copy(update={"workload": workload})})


def _try(resolved: Resolved, rate: float, slo: tuple[Bound, ...]) -> Trial:
    """A run with a failed request, or none completed, does not hold."""
    summary = simulate(resolved, Simulation())
    paced = resolved.scenario.engine.executor == "paced"
    stretched = 1e3 * (resolved.scenario.time_scale if paced else 1.0)
    shares = [((summary[bound.key] or 0.0) / (stretched * bound.limit_s), bound.name) for bound in slo]
    share, worst = max(shares)
    served = summary["failed"] == 0 and summary["completed"] > 0
    return Trial(rate=rate, holds=served and share <= 1, worst=worst, share=share, summary=summary)
