"""How far a simulation lies from an emulation of the same scenario, measure by measure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from prfaas_lab.errors import LabError
from prfaas_lab.spec.load import load_scenario
from prfaas_lab.spec.scenario import Resolved, Scenario

TOLERABLE = 0.10

MEASURES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "request throughput, 1/s": lambda s: s["request_throughput"],
    "TTFT mean, ms": lambda s: s["mean_ttft_ms"],
    "TTFT p50, ms": lambda s: s["median_ttft_ms"],
    "TTFT p90, ms": lambda s: s["p90_ttft_ms"],
    "TTFT p99, ms": lambda s: s["p99_ttft_ms"],
    "TPOT mean, ms": lambda s: s["mean_tpot_ms"],
    "offloaded share": lambda s: s["offload_fraction"],
    "cached share of tokens": lambda s: s["cache"]["hit_rate_tokens"],
    "cached share of requests": lambda s: s["cache"]["hit_rate_requests"],
    "cached tokens": lambda s: s["total_cached_tokens"],
    "link bytes": lambda s: sum(_busiest(link) for link in s["links"].values()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """One measure in both modes. `share` is of the emulated value; None where that is nothing."""

    measure: str
    emulated: float | None
    """The mean over emulations; None where one has none."""
    simulated: float | None
    least: float | None = None
    most: float | None = None
    """Of the emulations, where there are several."""

    @property
    def share(self) -> float | None:
        if self.emulated is None or self.simulated is None:
            return None
        if self.emulated == 0:
            return 0.0 if self.simulated == 0 else None
        return (self.simulated - self.emulated) / self.emulated


def emulated_run(folder: Path, resolved: Resolved) -> dict[str, Any]:
    """The summary of a run that is there already. Raises LabError unless it is one emulation of this very
    scenario, to its end: the errors against any other would say nothing."""
    where = str(folder)
    if not (folder / "summary.json").is_file() or not (folder / "scenario.yaml").is_file():
        raise LabError(
            "holds no run", where=where, remedy="name the directory of a run of prfaas-lab scenario"
        )
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if summary["mode"] != "emulate":
        raise LabError(f"is no emulation (mode: {summary['mode']})", where=where)
    if summary["stopped"]:
        raise LabError(f"was stopped by {summary['stopped']}", where=where, remedy="run it to its end")
    ran = load_scenario(folder / "scenario.yaml").scenario
    asked = resolved.scenario
    others = [name for name in Scenario.model_fields if getattr(ran, name) != getattr(asked, name)]
    if others:
        raise LabError(
            f"was a run of another scenario than {resolved.source} ({', '.join(others)} differ)",
            where=where,
            remedy=f"compare with {folder / 'scenario.yaml'}",
        )
    return summary


def errors(emulated: Sequence[Mapping[str, Any]], simulated: Mapping[str, Any]) -> list[Error]:
    """Of the summaries of emulations of one scenario, and of its simulation."""
    return [
        _error(name, [read(each) for each in emulated], read(simulated)) for name, read in MEASURES.items()
    ]


def _error(name: str, emulated: Sequence[float | None], simulated: float | None) -> Error:
    values = [value for value in emulated if value is not None]
    if len(values) < len(emulated):
        return Error(measure=name, emulated=None, simulated=simulated)
    several = len(values) > 1
    return Error(
        measure=name,
        emulated=fmean(values),
        simulated=simulated,
        least=min(values) if several else None,
        most=max(values) if several else None,
    )


def _busiest(link: Mapping[str, Any]) -> float:
    """The direction that carries KVCache: acknowledgements, the other way, are not simulated."""
    return float(max((direction["bytes"] for direction in link["directions"].values()), default=0))
