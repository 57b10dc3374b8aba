"""Events as lines of JSON and back: `events.jsonl` is a run that can be replayed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from prfaas_lab.errors import LabError
from prfaas_lab.metrics import events
from prfaas_lab.metrics.events import Event

KINDS: dict[str, type[Event]] = {
    name: kind for name, kind in vars(events).items() if isinstance(kind, type) and issubclass(kind, Event)
}
"""Class name -> class of every event."""

_FIELDS = {kind: tuple(field.name for field in fields(kind)) for kind in KINDS.values()}


def encode(event: Event) -> str:
    """One line of JSON without its newline. Raises ValueError for a NaN or an infinity."""
    kind = type(event)
    record = {"kind": kind.__name__, **{name: getattr(event, name) for name in _FIELDS[kind]}}
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def decode(line: str) -> Event:
    """The event of one line. Raises ValueError when the line is no event."""
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    name = record.pop("kind", None)
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"unknown kind {name!r}")
    try:
        return KINDS[name](**{key: _frozen(value) for key, value in record.items()})
    except TypeError as error:
        raise ValueError(str(error)) from error


def read_events(path: Path) -> Iterator[Event]:
    """The events of an `events.jsonl`, in the order they were recorded.

    A torn last line is what a killed run leaves: it is left out. Raises LabError for any other line
    that is no event.
    """
    with path.open(encoding="utf-8") as lines:
        yield from _decoded(lines, str(path))


def _decoded(lines: Iterable[str], where: str) -> Iterator[Event]:
    for number, line in enumerate(lines, start=1):
        try:
            yield decode(line)
        except ValueError as error:
            if not line.endswith("\n"):
                return
            raise LabError(
                f"not an event: {error}", where=f"{where}:{number}", remedy="was the file edited?"
            ) from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
