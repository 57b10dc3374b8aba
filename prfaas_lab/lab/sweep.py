"""Many simulations: every combination of a grid, on local processes or on Ray, into one table.

Each point has a directory of its own with its scenario and summary; what is there already is not run
again, so a sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prfaas_lab.errors import LabError, UsageError
from prfaas_lab.lab.extras import needs
from prfaas_lab.lab.simulate import Simulation, simulate
from prfaas_lab.lab.simulated_pacing import simulated_pacing
from prfaas_lab.lab.vary import varied
from prfaas_lab.metrics.files import write_atomically
from prfaas_lab.router import route_of
from prfaas_lab.spec.load import load_scenario
from prfaas_lab.spec.scenario import Resolved

_STATISTICS = ("mean", "median", "p90", "p99")
METRICS = (
    "submitted", "completed", "failed", "offload_fraction", "duration", "request_throughput",
    "output_throughput", "total_kvcache_bytes",
    *(f"{which}_{what}_ms" for what in ("ttft", "tpot", "e2el") for which in _STATISTICS),
)  # fmt: skip
"""Columns of the table, as a summary calls them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run of a sweep."""

    changes: tuple[tuple[str, str], ...]
    seed: int
    directory: str

    def run(self) -> dict[str, Any]:
        """Its row; simulated only if it was not before."""
        directory = Path(self.directory)
        done = directory / "summary.json"
        if not done.is_file():
            resolved = load_scenario(directory / "scenario.yaml")
            simulate(resolved, Simulation(out=directory, events=False))
        return self.row(json.loads(done.read_text(encoding="utf-8")))

    def row(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        links = summary["links"].values()
        return {
            **dict(self.changes),
            "seed": self.seed,
            **{name: summary[name] for name in METRICS},
            "link_bytes": sum(link["bytes"] for link in links),
            "link_utilization": max((link["utilization"] or 0.0 for link in links), default=None),
            "time_scale": summary["time_scale"],
            "verdict": summary["fidelity"]["verdict"],
        }


_COMMA = re.compile(r",(?![^\[{]*[\]}])")
"""Between values, and not within `[96, 640]`."""

Executor = Callable[[Sequence[Point]], Iterator[tuple[int, dict[str, Any]]]]
"""Runs points, and yields (number, row) as they are done."""


def grid_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """`key=a,b,c` of each; a value in brackets may have commas. Raises UsageError for what is no grid."""
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        found, key = [value.strip() for value in _COMMA.split(values) if value.strip()], key.strip()
        if not equals or not key or not found:
            raise UsageError(
                f"{text!r} is no grid", where="--grid", remedy="write --grid policy.threshold=8K,16K"
            )
        if key == "seed":
            raise UsageError("seed is no key to vary", where="--grid", remedy="write --seeds 5")
        if key in grid:
            raise UsageError(f"{key} is given twice", where="--grid", remedy=f"write {key}=A,B")
        grid[key] = found
    return grid


def points_of(resolved: Resolved, grid: Mapping[str, Sequence[str]], seeds: int, out: Path) -> list[Point]:
    """Every combination with every seed, its scenario written and read: a mistake is told before
    anything runs, and leaves nothing. Raises LabError."""
    points: list[Point] = []
    try:
        for values in itertools.product(*grid.values()):
            changes = tuple(zip(grid, values, strict=True))
            numbers = range(resolved.scenario.seed, resolved.scenario.seed + seeds)
            points.extend(_point(resolved, changes, seed, out / "points") for seed in numbers)
    except LabError:
        for point in (out / "points").glob("*/"):
            if not (point / "summary.json").is_file():
                shutil.rmtree(point)
        with contextlib.suppress(OSError):  # an earlier sweep's points are there, or files of someone else's
            (out / "points").rmdir()
            out.rmdir()
        raise
    return points


def _point(resolved: Resolved, changes: tuple[tuple[str, str], ...], seed: int, points: Path) -> Point:
    name = hashlib.blake2b(repr((changes, seed)).encode(), digest_size=5).hexdigest()
    directory = points / name
    asked, written = directory / "asked.yaml", directory / "scenario.yaml"
    point = varied(resolved, {**dict(changes), "seed": str(seed)}, asked)
    route_of(point.scenario.policy)
    simulated_pacing(point)
    if not written.is_file() or not _same(written, asked):
        (directory / "summary.json").unlink(missing_ok=True)
        write_atomically(written, asked.read_text(encoding="utf-8"))
    return Point(changes=changes, seed=point.scenario.seed, directory=str(directory))


def _same(one: Path, other: Path) -> bool:
    return load_scenario(one).scenario == load_scenario(other).scenario


def sweep(points: Sequence[Point], execute: Executor, told: Callable[[int], None]) -> list[dict[str, Any]]:
    """All rows, in the order of the points. `told` is given the number done so far."""
    rows: dict[int, dict[str, Any]] = {}
    for number, row in execute(points):
        rows[number] = row
        told(len(rows))
    return [rows[number] for number in range(len(points))]


def local(processes: int | None = None) -> Executor:
    """So many processes of this machine (all its cores)."""

    def execute(points: Sequence[Point]) -> Iterator[tuple[int, dict[str, Any]]]:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=spawn) as pool:
            futures = {pool.submit(point.run): number for number, point in enumerate(points)}
            for future in as_completed(futures):
                yield futures[future], future.result()

    return execute


def on_ray(address: str | None = None) -> Executor:
    """A Ray cluster: the one at `address`, or one started here. Raises UsageError without Ray. The
    cluster's machines must see the output directory and have this package installed."""
    needs("--executor ray", "ray")
    import ray

    def execute(points: Sequence[Point]) -> Iterator[tuple[int, dict[str, Any]]]:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
        try:
            run = ray.remote(num_cpus=1)(Point.run)
            waiting = {run.remote(point): number for number, point in enumerate(points)}
            while waiting:
                done, _ = ray.wait(list(waiting), num_returns=1)
                for each in done:
                    yield waiting.pop(each), ray.get(each)
        finally:
            ray.shutdown()

    return execute


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """CSV, or Parquet when the name ends so. Raises UsageError for Parquet without pyarrow."""
    if path.suffix == ".parquet":
        _write_parquet(rows, path)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def _write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    needs("--parquet", "pyarrow")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)
