"""`sweep` and `capacity`: many simulations of one scenario."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from prfaas_lab.cli.asked import found, fresh_directory
from prfaas_lab.errors import UsageError
from prfaas_lab.lab import capacity as capacities
from prfaas_lab.lab import sweep as sweeps
from prfaas_lab.lab.extras import needs
from prfaas_lab.lab.sweep_plots import plot
from prfaas_lab.spec.load import load_scenario


class Where(StrEnum):
    local = "local"
    ray = "ray"


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The scenario.")],
    grid: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=A,B,...",
            help="Values of a key of the file, e.g. policy.threshold=8K,16K; "
            "policy, threshold and rate are short. Repeat for a grid.",
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per combination, from the scenario's on.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where it goes; one that was stopped goes on there.", show_default="runs/<time>-<name>-sweep"
        ),
    ] = None,
    executor: Annotated[Where, typer.Option(help="Processes of this machine, or Ray.")] = Where.local,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Local processes.", show_default="all cores")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; unset starts one.")] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="The table as Parquet (needs pyarrow).")] = False,
    plots: Annotated[
        bool, typer.Option("--plots", help="SVGs along the first key (needs matplotlib).")
    ] = False,
) -> None:
    """Simulate every combination of a grid, into one tidy table.

    \b
    Next: prfaas-lab sweep scenarios/paper-case-study.yaml --seeds 2 --plots \\
              --grid policy=threshold,local-only \\
              --grid topology.links.vpc.rate=5Gbit,20Gbit,100Gbit
    """
    if address is not None and executor is not Where.ray:
        raise UsageError("is of a Ray cluster", where="--address", remedy="add --executor ray")
    for option, asked, module in (("--parquet", parquet, "pyarrow"), ("--plots", plots, "matplotlib")):
        if asked:
            needs(option, module)
    resolved = load_scenario(found(file))
    directory = out or fresh_directory(f"{resolved.scenario.name}-sweep")
    wanted = sweeps.grid_of(grid)
    points = sweeps.points_of(resolved, wanted, seeds, directory)
    execute = sweeps.on_ray(address) if executor is Where.ray else sweeps.local(processes)
    console = Console(file=sys.stderr)
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(points))
        rows = sweeps.sweep(points, execute, lambda done: progress.update(task, completed=done))
    table = directory / ("table.parquet" if parquet else "table.csv")
    sweeps.write_table(rows, table)
    Console().print(_rows(rows, list(wanted)))
    for remark in _remarks(rows):
        typer.echo(remark)
    typer.echo(f"{len(rows)} runs in {table}")
    for path in plot(rows, list(wanted), directory / "plots") if plots else []:
        typer.echo(str(path))


def capacity(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The scenario; its arrival rate is varied.")],
    slo: Annotated[str, typer.Option(help="Bounds in real time, e.g. ttft_p90=5s,tpot_p99=50ms.")],
    precision: Annotated[
        float, typer.Option(min=0.001, max=1, help="How narrow the answer is, as a share.")
    ] = 0.02,
) -> None:
    """The highest arrival rate at which a deployment holds an SLO, by bisection over simulations.

    A bound is <ttft|tpot|itl|e2el>_<mean|p50|p90|p99>=<time>. A rate at which a request fails does not
    hold. Exits with 1 when no rate holds.
    """
    resolved = load_scenario(found(file))
    unit = capacities.unit_of(resolved.scenario)

    def tell(trial: capacities.Trial) -> None:
        verdict = "holds" if trial.holds else "breaks"
        typer.echo(f"{trial.rate:10.4g} {unit} {verdict:6}  {trial.worst} at {trial.share:.0%} of its bound")

    best, trials = capacities.capacity(resolved, capacities.slo_of(slo), precision=precision, told=tell)
    if best is None:
        typer.echo(f"no rate holds {slo}")
        raise typer.Exit(1)
    rate = f"{best.rate:.4g} {unit} within {slo} ({best.worst} at {best.share:.0%})"
    if all(trial.holds for trial in trials):
        typer.echo(f"capacity: at least {rate}: no rate that was tried breaks it (give it more requests)")
    else:
        typer.echo(f"capacity: {rate}")


_SHOWN = {
    "req/s": "request_throughput",
    "TTFT, ms": "mean_ttft_ms",
    "p90, ms": "p90_ttft_ms",
    "offloaded": "offload_fraction",
    "link use": "link_utilization",
}


def _rows(rows: list[dict[str, object]], keys: list[str]) -> Table:
    table = Table(*keys, "seed", *_SHOWN)
    for row in rows:
        figures = (row[name] for name in _SHOWN.values())
        shown = (_figure(figure) for figure in figures)
        table.add_row(*(str(row[key]) for key in keys), str(row["seed"]), *shown)
    return table


def _figure(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _remarks(rows: list[dict[str, object]]) -> Iterator[str]:
    if failing := sum(bool(row["failed"]) for row in rows):
        yield f"in {failing} of them requests failed (column `failed`)"
    if {row["time_scale"] for row in rows} != {1.0}:
        yield "times and rates are those of the run: divided and multiplied by `time_scale`, the real ones"
