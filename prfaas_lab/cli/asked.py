"""What commands that run a scenario are asked for: a file, other values for some of its keys, a directory."""

from __future__ import annotations

import itertools
import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from prfaas_lab.errors import SpecError, UsageError
from prfaas_lab.spec.scenario import Resolved, Scenario
from prfaas_lab.spec.topology import Misfit
from prfaas_lab.spec.words import say

CacheOption = Annotated[
    str | None, typer.Option(help="off: without the prefix cache, on the same seed.", metavar="on|off")
]


def found(file: Path, folder: str = "scenarios") -> Path:
    """The file as named, or the shipped one of that name: `bursty.yaml` finds scenarios/bursty.yaml."""
    shipped = Path(folder) / file
    return shipped if not os.path.exists(file) and os.path.isfile(shipped) else file


def writable(file: Path | None) -> Path | None:
    """A file that can be written, asked before the work that fills it. Raises UsageError for another."""
    if file is None:
        return None
    folder = file.parent
    if file.is_dir():
        raise UsageError("is a directory", where=str(file), remedy="name a file in it")
    if not folder.is_dir():
        raise UsageError("is no directory", where=str(folder), remedy="make it, or name a file elsewhere")
    if not os.access(folder, os.W_OK):
        raise UsageError("cannot be written to", where=str(folder), remedy="name a file elsewhere")
    return file


def made(directory: Path) -> Path:
    """The directory of several runs. Raises UsageError where it cannot be made."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"results cannot be written here: {error.strerror}"
        raise UsageError(what, where=str(directory), remedy="give another --out") from error
    return directory


def overridden(
    resolved: Resolved,
    *,
    policy: str | None,
    threshold: str | None,
    seed: int | None,
    cache: str | None = None,
    compression: str | None = None,
) -> Resolved:
    """The scenario with what the command line says instead. Raises SpecError for what it cannot be."""
    scenario = resolved.scenario
    fields = {name: getattr(scenario, name) for name in Scenario.model_fields}
    fields["policy"] = scenario.policy.model_dump() | _given(name=policy, threshold=threshold)
    fields["transport"] = scenario.transport.model_dump() | _given(compression=compression)
    fields |= _given(seed=seed, cache=cache)
    try:
        return resolved.model_copy(update={"scenario": Scenario.model_validate(fields)})
    except ValidationError as error:
        problems = [text for detail in error.errors() for text in _option_problems(fields, detail)]
        raise SpecError(problems) from error


def _given(**asked: Any) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if value is not None}


def _option_problems(fields: dict[str, Any], detail: ErrorDetails) -> list[str]:
    path, error = tuple(detail["loc"]), detail.get("ctx", {}).get("error")
    if isinstance(error, Misfit):
        return [f"--{below[-1]}: {text}" for below, text in error.problems]
    return [f"--{path[-1]}: {say(Scenario, fields, path, detail)}"]


def fresh_directory(name: str) -> Path:
    """Where a run's files go when nothing was said."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    first = Path("runs") / f"{stamp}-{name}"
    more = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([first], more) if not path.exists())
