"""A scenario with other values under some of its keys, written and read as if a person had done it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prfaas_lab.errors import LabError
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

    `policy`, `threshold` and `rate` are short for the keys one varies most. Raises SpecError for a value
    that cannot be, LabError for a key that leads nowhere.
    """
    values = yaml.safe_load(dump(resolved))
    for key, text in changes.items():
        _set(values, _SHORT.get(key, tuple(key.split("."))), text, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100), encoding="utf-8")
    return load_scenario(path)


def _set(values: Any, path: tuple[str, ...], text: str, key: str) -> None:
    *parents, last = path
    for parent in parents:
        inner = values.get(parent) if isinstance(values, dict) else None
        if not isinstance(inner, dict):
            raise LabError(
                f"there is no {parent!r} to set {last!r} in", where=key, remedy="write it as in the file"
            )
        values = inner
    values[last] = _scalar(text)


def _scalar(text: str) -> Any:
    """What YAML makes of it: `3` is a number, `10Gbit` is text."""
    return parse_document(f"value: {text}", "--grid").root["value"]
