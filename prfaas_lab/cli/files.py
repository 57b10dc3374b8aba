"""`validate` and `schema`: about files, without running anything."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from prfaas_lab.errors import LabError, SpecError
from prfaas_lab.lab.pacing import pacing_of
from prfaas_lab.router import route_of
from prfaas_lab.spec.dump import schema as schema_of
from prfaas_lab.spec.load import kind_of, load_scenario, load_topology
from prfaas_lab.spec.scenario import Resolved


class Kind(StrEnum):
    topology = "topology"
    scenario = "scenario"


def validate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Topologies and scenarios to check.")
    ],
) -> None:
    """Check topology and scenario files; report every mistake with its line and the remedy.

    Exits with 2 when any file has a mistake.
    """
    problems: list[str] = []
    for file in files:
        try:
            kind = kind_of(file)
            if kind == "topology":
                load_topology(file)
            else:
                _runs(file, load_scenario(file))
        except SpecError as error:
            problems += error.problems
        else:
            typer.echo(f"{file}: a good {kind}")
    if problems:
        raise SpecError(problems)


def _runs(file: Path, resolved: Resolved) -> None:
    """Raises SpecError where a scenario that reads well names a policy or hardware that does not exist."""
    problems: list[str] = []
    try:
        route_of(resolved.scenario.policy)
    except LabError as error:
        problems.append(f"{file}: {error}")
    try:
        pacing_of(resolved)
    except SpecError as error:
        problems += [f"{file}: {problem}" for problem in error.problems]
    except LabError as error:
        problems.append(f"{file}: {error}")
    if problems:
        raise SpecError(problems)


def schema(
    kind: Annotated[Kind, typer.Argument(help="Which kind of file.")],
) -> None:
    """Print the JSON Schema of a kind of file, for editors.

    The shipped files name theirs in the first line, so that an editor with a YAML language server
    completes and checks them.
    """
    typer.echo(json.dumps(schema_of(kind.value), indent=2, ensure_ascii=False))
