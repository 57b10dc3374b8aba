"""`validate-sim`: a scenario emulated and simulated, and how far apart they are."""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from prfaas_lab.cli.asked import found, fresh_directory, made
from prfaas_lab.dashboard.live import screen_for
from prfaas_lab.errors import LabError
from prfaas_lab.fabric.userns import reexec_in_userns
from prfaas_lab.lab.deployment import Options
from prfaas_lab.lab.run import run_scenario
from prfaas_lab.lab.sim_error import TOLERABLE, Error, emulated_run, errors
from prfaas_lab.lab.simulate import Simulation, simulate
from prfaas_lab.lab.simulated_pacing import simulated_pacing
from prfaas_lab.metrics.files import write_atomically
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.spec.load import load_scenario


def validate_sim(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The scenario.")],
    emulated: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="A run directory of `prfaas-lab scenario`: compare with it, and run none. Repeatable.",
        ),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Of the model on this machine, instead of the shipped one.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the results go.", show_default="runs/<time>-<name>-validate"),
    ] = None,
    shaper: Annotated[str, typer.Option(help="How links are shaped: auto, netem, tun or relay.")] = "auto",
    allow_unfaithful: Annotated[
        bool, typer.Option("--allow-unfaithful", help="Compare even when the links are off their spec.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Run a scenario in both modes, and print the simulation's error for every measure.

    With several emulations, the error is against their mean; their range is printed beside it. An error of
    more than 10 % is marked. docs/simulation.md has what was measured of shipped scenarios.
    """
    if not emulated:
        reexec_in_userns()
    resolved = load_scenario(found(file))
    simulated_pacing(resolved, profile)  # before the minutes of an emulation: whether it can be simulated

    def screen(ledger: Ledger) -> AbstractAsyncContextManager[Any]:
        return nullcontext() if as_json else screen_for(ledger, headless=True)

    if not emulated:
        directory = made(out or fresh_directory(f"{resolved.scenario.name}-validate"))
        options = Options(out=directory / "emulated", shaper=shaper, allow_unfaithful=allow_unfaithful)
        outcome = run_scenario(resolved, options, screen)
        if outcome.stopped is not None:
            raise LabError(f"stopped by {outcome.stopped}", where=str(options.out))
        measured = [outcome.summary]
    else:
        measured = [emulated_run(each, resolved) for each in emulated]
        directory = made(out or fresh_directory(f"{resolved.scenario.name}-validate"))
    reckoned = simulate(resolved, Simulation(out=directory / "simulated", profile=profile))
    compared = errors(measured, reckoned)
    rows = [
        {
            "measure": e.measure, "emulated": e.emulated, "least": e.least, "most": e.most,
            "simulated": e.simulated, "error": e.share,
        }
        for e in compared
    ]  # fmt: skip
    write_atomically(directory / "errors.json", json.dumps(rows, indent=2) + "\n")
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    Console().print(_table(compared))
    verdicts = ", ".join(each["fidelity"]["verdict"] for each in measured)
    which = "the emulation was" if len(measured) == 1 else "the emulations were"
    typer.echo(f"{which} {verdicts}; files in {directory}")


def _table(compared: list[Error]) -> Table:
    table = Table("measure", "emulated", "simulated", "error")
    for error in compared:
        share = error.share
        mark = " *" if share is not None and abs(share) > TOLERABLE else ""
        table.add_row(
            error.measure, _emulated(error), _figure(error.simulated),
            "-" if share is None else f"{share:+.1%}{mark}",
        )  # fmt: skip
    return table


def _emulated(error: Error) -> str:
    if error.least is None or error.least == error.most:
        return _figure(error.emulated)
    return f"{_figure(error.emulated)} ({_figure(error.least)} to {_figure(error.most)})"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"
