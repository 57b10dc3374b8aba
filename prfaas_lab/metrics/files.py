"""The files a run leaves: `events.jsonl` as it goes, `requests.jsonl` and `summary.json` at its end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import IO, Any

import msgspec

from prfaas_lab.errors import LabError
from prfaas_lab.metrics.codec import encode
from prfaas_lab.metrics.events import Event
from prfaas_lab.metrics.handover import LEGS, Account
from prfaas_lab.metrics.requests import RequestRecord

FLUSH_S = 1.0
FLUSH_LINES = 512
"""Lines are written once they are so many, or the oldest is this old (by the events' own time)."""
_BUFFER_BYTES = 1 << 18
"""Of rows that wait to be written: a write costs more than a row."""


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full disk is no bug of ours. Raises LabError for it."""
    try:
        yield
    except OSError as error:
        raise LabError(
            f"cannot be written: {error.strerror}", where=str(path), remedy="make room, or give another --out"
        ) from error


class EventWriter:
    """A subscriber of the ledger that streams events to a file. Whoever opens it closes it. Raises LabError
    when the file cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("wb")
        self._lines: list[bytes] = []
        self._flushed_s = 0.0

    def __call__(self, event: Event) -> None:
        self._lines.append(encode(event))
        if len(self._lines) >= FLUSH_LINES or event.at_s - self._flushed_s >= FLUSH_S:
            self._flush(event.at_s)

    def close(self) -> None:
        """Write what is left; events after this are an error. Closing twice is fine."""
        if self._file.closed:
            return
        try:
            self._flush(self._flushed_s)
        finally:
            with _writing(self._path):
                self._file.close()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _flush(self, at_s: float) -> None:
        if self._lines:
            text = b"\n".join(self._lines) + b"\n"
            self._lines.clear()
            with _writing(self._path):
                self._file.write(text)
                self._file.flush()
        self._flushed_s = at_s


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write it whole or not at all. Raises ValueError for a NaN."""
    write_atomically(path, json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never half of it. Raises LabError where it cannot be."""
    half = path.with_name(f".{path.name}.partial")
    with _writing(path):
        half.write_text(text, encoding="utf-8")
        os.replace(half, path)


class RequestWriter:
    """Writes a request's row as soon as it is over. Whoever opens it closes it. Raises LabError when the file
    cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("wb", buffering=_BUFFER_BYTES)

    def __call__(self, account: Account) -> None:
        try:
            self._file.write(_to_json(_row(account)) + b"\n")
        except OSError:
            with _writing(self._path):
                raise

    def __enter__(self) -> RequestWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        with _writing(self._path):
            self._file.close()


def write_requests(path: Path, records: Iterable[RequestRecord]) -> None:
    """One line of JSON per request, streamed."""
    with RequestWriter(path) as write:
        for record in records:
            write(Account.of(record))


_FIELDS = tuple(name for name in RequestRecord.__struct_fields__ if name != "gaps_s")
_values = attrgetter(*_FIELDS)
_to_json = msgspec.json.Encoder().encode


_Row = msgspec.defstruct(
    "_Row", (*_FIELDS, "ttft_ms", "tpot_ms", "e2el_ms", "handover", "violations"), gc=False
)
_Legs = msgspec.defstruct("_Legs", LEGS, gc=False)


def _row(account: Account) -> Any:
    """A request's stamps, counts and latencies, its hand-over ledger, and the laws it broke: a struct, since
    a dict costs twice as much."""
    handover = None if account.legs is None else _Legs(*account.legs)
    broken = [violation.text for violation in account.violations]
    latencies_ms = account.ttft_ms, account.tpot_ms, account.e2el_ms
    return _Row(*_values(account.record), *latencies_ms, handover, broken)
