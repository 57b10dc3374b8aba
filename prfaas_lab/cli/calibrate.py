"""`calibrate`: a profile of the real model on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from prfaas_lab.cli.asked import writable
from prfaas_lab.cli.working import working
from prfaas_lab.errors import UsageError
from prfaas_lab.lab.run_profile import cores_for_engines, profile_of_runs
from prfaas_lab.metrics.files import write_atomically
from prfaas_lab.model.profile import Profile
from prfaas_lab.spec.scenario import Model


def calibrate(
    model: Annotated[str, typer.Argument(help="A shipped tiny model.")] = "qwen3-next-tiny",
    out: Annotated[
        Path | None, typer.Option(help="Write the profile to this file instead of the terminal.")
    ] = None,
    chunk: Annotated[int, typer.Option(min=64, help="Prefill chunk, in tokens.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Tries of each; the fastest counts.")] = 3,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="From this run of the real model: what its engines took in it. Repeatable."
        ),
    ] = None,
) -> None:
    """Measure a real model on this machine: prefill and decode times and KVCache sizes, as a profile.

    Measured alone, on one core; or with --run as the engines of a run took it, less what they waited for
    each other on this machine's cores: what a simulation of the real model needs. Several runs make one
    profile, of which the machine's hour is a smaller part.

    Name the file as a datacenter's `hardware:` to plan for it, or to pace or simulate engines by it.

    \b
    Next: prfaas-lab calibrate qwen3-next-tiny --out mine.yaml
          prfaas-lab calibrate --run runs/bursty --out run.yaml
          prfaas-lab validate-sim scenarios/bursty.yaml --profile run.yaml
    """
    if chunk % 64:
        raise typer.BadParameter(f"--chunk {chunk} is not a multiple of 64")
    out = writable(out)
    for each in run or ():
        _emulated(each)
    profile = profile_of_runs(run, cores_for_engines()) if run else _alone(Model(name=model), chunk, repeats)
    text = yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False, width=100)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_atomically(out, text)
        typer.echo(f"the profile is in {out}")


def _emulated(run: Path) -> None:
    summary = run / "summary.json"
    if summary.is_file() and json.loads(summary.read_text("utf-8"))["mode"] == "simulate":
        raise UsageError("was simulated, by a profile", where=str(run), remedy="run prfaas-lab scenario")


def _alone(model: Model, chunk: int, repeats: int) -> Profile:
    from prfaas_lab.model.torch_calibrate import calibrate as measure  # torch is only needed here

    with working(f"measuring {model.name}"):
        return measure(model, chunk_tokens=chunk, repeats=repeats)
