"""`simulate`: a scenario on a virtual clock."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prfaas_lab.cli.asked import CacheOption, found, fresh_directory, overridden
from prfaas_lab.cli.ended import check
from prfaas_lab.dashboard.table import print_summary
from prfaas_lab.lab.simulate import Simulation
from prfaas_lab.lab.simulate import simulate as run
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.spec.load import load_scenario

_MANY_REQUESTS = 20_000
"""Above so many, `events.jsonl` would be gigabytes: it is written only when asked for."""
_REDRAW_S = 0.2


def simulate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The scenario, e.g. scenarios/bursty.yaml.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the results go.", show_default="runs/<time>-<name>")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Route by this policy instead.")] = None,
    threshold: Annotated[
        str | None, typer.Option(help="Offload prompts with more uncached tokens than this, e.g. 2K.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Another workload and network of the same kind.")
    ] = None,
    cache: CacheOption = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Of the scenario's real model on this machine, instead of the shipped one."),
    ] = None,
    events: Annotated[
        bool | None,
        typer.Option(help="Write events.jsonl.", show_default=f"up to {_MANY_REQUESTS} requests"),
    ] = None,
) -> None:
    """Run a scenario on a virtual clock: the same control plane, in seconds, without root or a model.

    Engines are reckoned from hardware profiles and links as fluids; the same files come out, the same
    to the last byte for the same seed. How far it lies from an emulation: docs/simulation.md.
    Exits with 0 when every request was served, 1 when not, 2 when a file is wrong.

    \b
    Next: prfaas-lab simulate scenarios/paper-case-study.yaml
          prfaas-lab validate-sim scenarios/bursty.yaml
    """
    resolved = overridden(
        load_scenario(found(file)), policy=policy, threshold=threshold, seed=seed, cache=cache
    )
    requests = resolved.scenario.workload.requests
    if events is None:
        events = requests is None or requests <= _MANY_REQUESTS
    directory = out or fresh_directory(resolved.scenario.name)
    with _bar(requests) as progress:
        summary = run(resolved, Simulation(out=directory, events=events, progress=progress, profile=profile))
    print_summary(summary, files=str(directory))
    check(summary, remedy="see requests.jsonl beside the summary")


class _Bar:
    """Redraws now and then, however many requests end."""

    def __init__(self, progress: Progress, requests: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task("simulating", total=requests, virtual="")
        self._due = 0.0

    def __call__(self, ledger: Ledger) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _REDRAW_S
            tally = ledger.tally
            self._progress.update(
                self._task, completed=tally.submitted - tally.in_flight, virtual=f"{ledger.now():,.0f} s"
            )


@contextmanager
def _bar(requests: int | None) -> Iterator[_Bar]:
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("virtual {task.fields[virtual]}"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Bar(progress, requests)
