"""Recorded bandwidth: files in mahimahi's format, and CSV of (seconds, bits per second)."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from prfaas_lab.errors import FabricError

SLOT_BITS = 1500 * 8
"""What one line of a mahimahi trace lets through (mahimahi's PACKET_SIZE)."""
MAX_LINES = 10_000_000

_MAHIMAHI_REMEDY = "write one whole number of milliseconds a line, never less than the line before"
_CSV_REMEDY = "write `seconds,bits_per_second`, the seconds rising from 0"
_T = TypeVar("_T")


class MahimahiTrace:
    """Delivery slots in time. The trace starts over at its last timestamp, as in mahimahi."""

    def __init__(self, slots_ms: Sequence[int]) -> None:
        self._slots_ms, self._period_ms = slots_ms, slots_ms[-1]

    def mean_bps(self, start_s: float, end_s: float) -> float:
        """Rate of the slots within [start, end): consecutive windows count every slot once."""
        return (self._slots_before(end_s) - self._slots_before(start_s)) * SLOT_BITS / (end_s - start_s)

    def _slots_before(self, at_s: float) -> int:
        at_ms = round(at_s * 1000, 6)  # a window edge meant to lie on a timestamp shall lie there
        rounds, rest_ms = divmod(at_ms, self._period_ms)
        return int(rounds) * len(self._slots_ms) + bisect_left(self._slots_ms, rest_ms)


def read_mahimahi(path: Path) -> MahimahiTrace:
    """One timestamp in milliseconds per 1500-byte slot. Raises FabricError with file and line."""
    slots_ms = array("q")
    for where, at_ms in _lines(path, int, _MAHIMAHI_REMEDY):
        if at_ms < (slots_ms[-1] if slots_ms else 0):
            raise FabricError(f"the time {at_ms} runs backwards", where=where, remedy=_MAHIMAHI_REMEDY)
        slots_ms.append(at_ms)
    if not slots_ms or slots_ms[-1] == 0:
        raise FabricError("no slot later than 0 ms", where=str(path), remedy=_MAHIMAHI_REMEDY)
    return MahimahiTrace(slots_ms)


def read_csv(path: Path) -> tuple[tuple[float, float], ...]:
    """(seconds, bits per second) rows, rising. A first line of words is a heading.

    Raises FabricError with file and line.
    """
    rows: list[tuple[float, float]] = []
    for where, (at_s, rate_bps) in _lines(path, _pair, _CSV_REMEDY, heading=True):
        if rows and at_s <= rows[-1][0]:
            raise FabricError(f"the time {at_s:g} does not rise", where=where, remedy=_CSV_REMEDY)
        rows.append((at_s, rate_bps))
    if not rows:
        raise FabricError("no rows", where=str(path), remedy=_CSV_REMEDY)
    return tuple(rows)


def _pair(text: str) -> tuple[float, float]:
    seconds, rate = map(float, text.split(","))
    if not (0 <= seconds < math.inf and 0 <= rate < math.inf):
        raise ValueError(text)
    return seconds, rate


def _lines(
    path: Path, parse: Callable[[str], _T], remedy: str, *, heading: bool = False
) -> Iterator[tuple[str, _T]]:
    """(file:line, value) of every line that is not blank or a comment."""
    for number, text in _texts(path):
        where = f"{path}:{number}"
        if number > MAX_LINES:
            raise FabricError(f"more than {MAX_LINES} lines", where=where, remedy="cut the trace")
        try:
            yield where, parse(text)
        except ValueError as error:
            if not (heading and number == 1):
                raise FabricError(f"cannot read {text[:60]!r}", where=where, remedy=remedy) from error


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                text = line.partition("#")[0].strip()
                if text:
                    yield number, text
    except OSError as error:
        what = f"cannot read the trace: {error.strerror}"
        raise FabricError(what, where=str(path), remedy="give a path relative to the scenario") from error
