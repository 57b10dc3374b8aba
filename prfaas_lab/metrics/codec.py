"""Events as lines of JSON and back: `events.jsonl` is a run that can be replayed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Union

import msgspec

from prfaas_lab.errors import LabError
from prfaas_lab.metrics import events
from prfaas_lab.metrics.events import Event

KINDS: dict[str, type[Event]] = {
    name: kind for name, kind in vars(events).items() if isinstance(kind, type) and issubclass(kind, Event)
}
"""Class name -> class of every event."""


def _plain(value: Any) -> Any:
    """What is text or a number, but of a type of its own, such as numpy's floats."""
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"no event has a {type(value).__name__} in it")


_to_json = msgspec.json.Encoder(enc_hook=_plain).encode
_from_json = msgspec.json.Decoder(Union[tuple(KINDS.values())]).decode  # noqa: UP007 (a union of a tuple)


def encode(event: Event) -> bytes:
    """One line of JSON without its newline. Raises ValueError for a NaN or an infinity."""
    try:
        line = _to_json(event)
    except UnicodeEncodeError:  # of a file's name, say: what cannot be written becomes a question mark
        return _as_text(event).encode("utf-8", "replace")
    if b":null" in line:
        _refuse_nan(event)
    return line


def decode(line: str | bytes) -> Event:
    """The event of one line. Raises ValueError when the line is no event."""
    try:
        event: Event = _from_json(line)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    return event


def read_events(path: Path) -> Iterator[Event]:
    """The events of an `events.jsonl`, in the order they were recorded.

    A torn last line is what a killed run leaves: it is left out. Raises LabError for any other line
    that is no event.
    """
    with path.open("rb") as lines:
        yield from _decoded(lines, str(path))


def _decoded(lines: Iterable[bytes], where: str) -> Iterator[Event]:
    for number, line in enumerate(lines, start=1):
        try:
            yield decode(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                return
            raise LabError(
                f"not an event: {error}", where=f"{where}:{number}", remedy="was the file edited?"
            ) from error


def _refuse_nan(event: Event) -> None:
    """JSON has no such numbers, and null already means that there is none."""
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}, which is not JSON compliant")


def _as_text(event: Event) -> str:
    return json.dumps(
        {"kind": type(event).__name__, **msgspec.structs.asdict(event)},
        ensure_ascii=False, allow_nan=False, separators=(",", ":"),
    )  # fmt: skip
