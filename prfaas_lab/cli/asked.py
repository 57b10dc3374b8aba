"""What commands that run a scenario are asked for: a file, other values for some of its keys, a directory."""

from __future__ import annotations

import itertools
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from prfaas_lab.errors import SpecError
from prfaas_lab.spec.scenario import Resolved, Scenario
from prfaas_lab.spec.topology import Misfit
from prfaas_lab.spec.words import say

CacheOption = Annotated[
    str | None, typer.Option(help="off: without the prefix cache, on the same seed.", metavar="on|off")
]


def found(file: Path) -> Path:
    """The file as named, or the shipped scenario of that name: `bursty.yaml` finds scenarios/bursty.yaml."""
    shipped = Path("scenarios") / file
    return shipped if not file.exists() and shipped.is_file() else file


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
