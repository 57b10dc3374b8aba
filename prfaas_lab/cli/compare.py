"""`compare`: policies side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from prfaas_lab.cli.asked import found, fresh_directory, made
from prfaas_lab.errors import RunFailed
from prfaas_lab.lab.compare import Comparison, Interval, Measured, Row
from prfaas_lab.lab.compare import compare as run_all
from prfaas_lab.lab.deployment import Options
from prfaas_lab.metrics.files import write_atomically
from prfaas_lab.spec.load import load_scenario


def compare(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The scenario.")],
    policies: Annotated[
        str,
        typer.Option(
            metavar="A,B,C",
            help="Policies, the one to judge by first; or module:function; NAME@cache-off: no cache.",
        ),
    ] = "prfaas,homogeneous,naive,balanced",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Runs of each, with intervals from two on.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Where all runs and comparison.json go.", show_default="runs/<time>-..."),
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="On the virtual clock, in seconds instead of minutes.")
    ] = False,
    shaper: Annotated[str, typer.Option(help="How links are shaped: auto, netem, tun or relay.")] = "auto",
    allow_unfaithful: Annotated[
        bool, typer.Option("--allow-unfaithful", help="Run even when the measured links are off their spec.")
    ] = False,
) -> None:
    """Run one workload under several policies, with the same seeds, and compare their steady states.

    Where engines are paced, each policy gets the roles, threshold or share that the planner finds best
    for it on the same instances, and the throughput model's prediction stands beside the measurement.

    \b
    Next: prfaas-lab compare scenarios/paper-case-study.yaml --seeds 3
          prfaas-lab compare scenarios/multi-turn.yaml \\
              --policies cache-aware,cache-aware@cache-off
    """
    names = list(dict.fromkeys(name.strip() for name in policies.split(",") if name.strip()))
    if not names:
        raise typer.BadParameter("--policies: name at least one")
    resolved = load_scenario(found(file))
    folder = made(out or fresh_directory(f"compare-{resolved.scenario.name}"))
    console = Console(stderr=as_json)
    options = Options(out=folder, shaper=shaper, allow_unfaithful=allow_unfaithful)
    comparison = run_all(
        resolved,
        names,
        seeds=seeds,
        options=options,
        simulated=simulate,
        tell=lambda run: console.print(_line(run)),
    )
    text = json.dumps(comparison.as_dict(), indent=2)
    write_atomically(folder / "comparison.json", text + "\n")
    if as_json:
        typer.echo(text)
    else:
        console.print(_table(comparison))
        if any(row.predicted and row.error is None for row in comparison.rows):
            console.print("off by -: less was offered than the model predicts to be served")
        console.print(f"files       {folder}")
    _exit(comparison)


def _line(run: Measured) -> str:
    lost = f", {run.failed} failed" if run.failed else ""
    ended = f"{run.throughput:.3f} req/s, {run.completed} ended{lost}"
    return f"{run.policy}, seed {run.seed}: {ended}, {run.verdict}"


def _table(comparison: Comparison) -> Table:
    reference = comparison.rows[0].policy
    table = Table(
        title=f"{comparison.scenario}, steady state, seeds {_span(comparison.seeds)}",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("policy", no_wrap=True)
    for title in (
        "P/p/d", "t", "offload", "req/s", "model", "off by", f"{reference} gains", "p90 TTFT",
        "verdict",
    ):  # fmt: skip
        table.add_column(title, justify="right")
    for row in comparison.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    verdicts = [run.verdict for run in row.runs]
    return [
        row.policy,
        row.deployment,
        "-" if row.threshold_tokens is None else f"{row.threshold_tokens:,}",
        f"{row.offload_fraction.mean:.1%}",
        _interval(row.throughput, 2),
        "-" if row.predicted is None else f"{row.predicted.lambda_max:.2f}",
        "-" if row.error is None else f"{row.error:+.1%}",
        f"x{_interval(row.gain, 3)}",
        f"{_interval(row.p90_ttft_s, 1)} s",
        ", ".join(f"{verdicts.count(one)} {one}" for one in dict.fromkeys(verdicts)),
    ]


def _interval(interval: Interval, digits: int) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f} +-{(interval.high - interval.low) / 2:.{digits}f}"


def _span(seeds: tuple[int, ...]) -> str:
    return f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"


def _exit(comparison: Comparison) -> None:
    failed = sum(run.failed for row in comparison.rows for run in row.runs)
    invalid = [f"{run.policy} seed {run.seed}" for row in comparison.rows for run in row.runs
               if run.verdict == "INVALID"]  # fmt: skip
    if failed or invalid:
        raise RunFailed(f"{failed} requests failed; INVALID: {', '.join(invalid) or 'none'}")
