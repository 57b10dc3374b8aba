"""Validates a document against a model, and finds every mistake in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from prfaas_lab.spec.document import Document, PathInFile, Problem, Section, value_at
from prfaas_lab.spec.quantities import FROM_FILE
from prfaas_lab.spec.topology import Misfit, Spec
from prfaas_lab.spec.words import keys_below, known_keys, nearest, say, unknown_key

SpecT = TypeVar("SpecT", bound=Spec)


def validate(model: type[SpecT], document: Document) -> tuple[SpecT | None, list[Problem]]:
    """The document as a model (None when it cannot be one), and everything wrong with it.

    Unknown keys are put right first (renamed to the key that was meant, or dropped), so that one
    typo neither hides the mistakes below it nor makes the key it stands for look missing.
    """
    problems = list(document.problems)
    while True:
        try:
            return model.model_validate(document.root, context=FROM_FILE), problems
        except ValidationError as error:
            details = error.errors(include_url=False)
        unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
        if not unknown:
            return None, problems + [
                problem for detail in details for problem in _problems_of(model, document, detail)
            ]
        for detail in unknown:
            path = path_in_file(document.root, detail["loc"])
            known = known_keys(model, document.root, path[:-1])
            below = keys_below(model, document.root, path[:-1])
            problems.append(document.problem(path, unknown_key(str(path[-1]), known, below)))
            _put_right(value_at(document.root, path[:-1]), str(path[-1]), known)


_NOTHING = object()


def path_in_file(root: Section, loc: Sequence[str | int]) -> PathInFile:
    """Pydantic's location without the union tags and markers that the file does not have."""
    path: list[str | int] = []
    here: Any = root
    tag_passed = False
    for part in loc:
        keys = here if isinstance(here, Mapping) else {}
        if str(part)[:1] in ("<", "[") and part not in keys:  # our union tags; pydantic's "[key]"
            continue
        if not tag_passed and keys.get("kind", _NOTHING) == part:
            tag_passed = True  # a discriminated union names its arm once
            continue
        path.append(part)
        tag_passed = False
        try:
            here = here[part]
        except (LookupError, TypeError):
            here = None
    return tuple(path)


def _put_right(section: Section, key: str, known: Iterable[str]) -> None:
    line, value = section.lines.pop(key), section.pop(key)
    meant = nearest(key, [name for name in known if name not in section])
    if meant is not None:
        section.lines[meant], section[meant] = line, value


def _problems_of(model: type[BaseModel], document: Document, detail: ErrorDetails) -> list[Problem]:
    path = path_in_file(document.root, detail["loc"])
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, Misfit):
        return [document.problem((*path, *below), text) for below, text in error.problems]
    text = say(model, document.root, path, detail)
    return [document.problem(path[:-1] if detail["type"] == "missing" else path, text)]
