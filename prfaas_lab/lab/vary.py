"""A scenario with other values under some of its keys, written and read as if a person had done it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prfaas_lab.errors import SpecError, UsageError
from prfaas_lab.spec.dump import dump
from prfaas_lab.spec.load import load_scenario
from prfaas_lab.spec.scenario import Resolved
from prfaas_lab.spec.yaml_text import parse_document

_SHORT = {
    "policy": ("policy", "name"),
    "threshold": ("policy", "threshold"),
    "rate": ("workload", "arrivals", "rate"),
}


def varied(resolved: Resolved, changes: Mapping[str, str], path: Path) -> Resolved:
    """Write the scenario with `changes` (dotted key -> value as in a file) to `path`, and read it.

    `policy`, `threshold` and `rate` are short for the keys one varies most. Raises UsageError for a key or
    a value that cannot be, and leaves nothing then.
    """
    values = yaml.safe_load(dump(resolved))
    for key, text in changes.items():
        _set(values, _SHORT.get(key, tuple(key.split("."))), text, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100), encoding="utf-8"
        )
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise UsageError(what, where=str(path.parent), remedy="give another --out") from error
    try:
        return load_scenario(path)
    except SpecError as error:
        path.unlink()
        with contextlib.suppress(OSError):
            path.parent.rmdir()
        asked = ", ".join(f"{key}={text}" for key, text in changes.items() if key != "seed")
        wrong = "; ".join(
            problem.removeprefix(str(path)).lstrip(":0123456789 ") for problem in error.problems
        )
        raise UsageError(wrong, where=f"--grid {asked}") from error


def _set(values: Any, path: tuple[str, ...], text: str, key: str) -> None:
    *parents, last = path
    for parent in parents:
        inner = values.get(parent) if isinstance(values, dict) else None
        if not isinstance(inner, dict):
            raise UsageError(
                f"there is no {parent!r} to set {last!r} in",
                where=f"--grid {key}",
                remedy="write the key as in the file, with dots between its levels",
            )
        values = inner
    values[last] = _scalar(text)


def _scalar(text: str) -> Any:
    """What YAML makes of it: `3` is a number, `10Gbit` is text."""
    value = parse_document(f"value: {text}", "--grid").root["value"]
    return json.loads(json.dumps(value))  # plain lists and mappings, which can be written
