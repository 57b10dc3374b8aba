"""Public request traces as requests: Mooncake (jsonl with block hashes) and Azure (csv of lengths).

Traces carry no text, only lengths and, in Mooncake's case, which 512-token blocks are equal. Tokens
are made up from those: a block's tokens are a function of the seed and its hash id alone, so equal ids
give equal tokens in every request, file and process, and prefixes are shared as they were in reality.
Blocks and lengths may be scaled down together so that a tiny model can run them. Everything streams:
a trace is read line by line and never held as a whole.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import shake_128
from pathlib import Path
from typing import Annotated, Any

import msgspec

from prfaas_lab.errors import LabError
from prfaas_lab.workload.request import Request

TRACE_BLOCK_TOKENS = 512
"""Tokens of the real world that one of Mooncake's hash ids stands for."""


class TraceError(LabError):
    """A trace that cannot be read: `where` is `file:line`. Nothing before that line is affected."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One request of a trace in its own units. `arrival_s` counts from the first row; `hash_ids` is
    empty when the trace does not say what is shared."""

    line: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceScale:
    """How a trace is brought to the size of the lab.

    `block_tokens` replaces each 512 tokens of a prompt: 512 keeps lengths as they are. Complete
    blocks stay complete and partial ones partial. `output_factor` multiplies outputs (at least one
    token is left), `rate_factor` the arrival rate (2 halves every gap).
    """

    block_tokens: int = TRACE_BLOCK_TOKENS
    output_factor: float = 1.0
    rate_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.block_tokens < 1 or self.output_factor <= 0 or self.rate_factor <= 0:
            raise TraceError(f"{self} leaves nothing of the trace", remedy="every factor must be positive")

    def prompt_tokens(self, trace_tokens: int) -> int:
        return max(1, trace_tokens * self.block_tokens // TRACE_BLOCK_TOKENS)

    def output_tokens(self, trace_tokens: int) -> int:
        return max(1, round(trace_tokens * self.output_factor))


def read_mooncake(path: Path) -> Iterator[TraceRow]:
    """Rows of a Mooncake trace: JSON objects with `timestamp` (ms), `input_length`, `output_length`
    and `hash_ids`, one id per started block of 512 tokens. Raises TraceError at the first bad line."""
    return _in_order(path, _mooncake_rows(path))


def read_azure(path: Path) -> Iterator[TraceRow]:
    """Rows of an Azure LLM trace: csv of TIMESTAMP, ContextTokens, GeneratedTokens. Raises TraceError
    at the first bad line."""
    return _in_order(path, _azure_rows(path))


TRACES: dict[str, Callable[[Path], Iterator[TraceRow]]] = {"azure": read_azure, "mooncake": read_mooncake}


def trace_requests(
    rows: Iterable[TraceRow],
    *,
    seed: int,
    vocabulary: int,
    first_token: int = 0,
    scale: TraceScale | None = None,
) -> Iterator[Request]:
    """Requests with made-up tokens in `first_token` .. `vocabulary - 1`, one per row, in order.

    Same seed and row, same request. Blocks of different ids differ as long as there are enough
    possible contents: vocabulary ** block_tokens far above the square of the number of ids.
    """
    import numpy as np  # only for contents, which a simulation mostly does without

    scale = scale or TraceScale()
    span = vocabulary - first_token
    if span < 2:
        raise TraceError(f"no choice of tokens from {first_token} to {vocabulary - 1}")
    for row in rows:
        length = scale.prompt_tokens(row.prompt_tokens)
        names = [f"id {i}" for i in row.hash_ids] or [f"row {row.line}"]
        size = scale.block_tokens if row.hash_ids else length
        drawn = b"".join(shake_128(f"{seed} {name}".encode()).digest(4 * size) for name in names)
        prompt = np.frombuffer(drawn, dtype="<u4")[:length] % span + first_token
        yield Request(
            id=f"trace-{row.line}",
            arrival_s=row.arrival_s / scale.rate_factor,
            prompt=tuple(prompt.tolist()),
            output_tokens=scale.output_tokens(row.output_tokens),
        )


# -- formats --


class _Mooncake(msgspec.Struct):
    """A line as it should be."""

    timestamp: float
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Annotated[int, msgspec.Meta(ge=0)]
    hash_ids: list[int] = []

    @property
    def whole(self) -> bool:
        return not self.hash_ids or len(self.hash_ids) == _blocks(self.input_length)


_AS_IT_SHOULD_BE = msgspec.json.Decoder(_Mooncake)


def _mooncake_rows(path: Path) -> Iterator[TraceRow]:
    for line, text in enumerate(_lines(path), start=1):
        if text.strip():
            yield _mooncake_row(text, line, path)


def _mooncake_row(text: str, line: int, path: Path) -> TraceRow:
    try:
        row = _AS_IT_SHOULD_BE.decode(text)
    except msgspec.MsgspecError:
        return _odd_mooncake_row(text, line, f"{path}:{line}")
    if not row.whole:
        return _odd_mooncake_row(text, line, f"{path}:{line}")
    return TraceRow(
        line=line,
        arrival_s=row.timestamp / 1000,
        prompt_tokens=row.input_length,
        output_tokens=row.output_length,
        hash_ids=tuple(row.hash_ids),
    )


def _odd_mooncake_row(text: str, line: int, where: str) -> TraceRow:
    """Piece by piece: to say what is wrong, or to let pass numbers that are written as text."""
    try:
        row = json.loads(text)
    except ValueError as error:
        raise TraceError(f"not JSON: {error}", where=where) from error
    if not isinstance(row, dict):
        raise TraceError("not a JSON object", where=where)
    prompt = _count(row, "input_length", where, least=1)
    ids = row.get("hash_ids", [])
    if not isinstance(ids, list) or not {int}.issuperset(map(type, ids)):
        raise TraceError("hash_ids is not a list of integers", where=where)
    if ids and len(ids) != _blocks(prompt):
        words = f"{len(ids)} hash_ids for {prompt} tokens"
        raise TraceError(words, where=where, remedy=f"one per 512: {_blocks(prompt)}")
    return TraceRow(
        line=line,
        arrival_s=_number(row, "timestamp", where) / 1000,
        prompt_tokens=prompt,
        output_tokens=_count(row, "output_length", where, least=0),
        hash_ids=tuple(ids),
    )


def _blocks(tokens: int) -> int:
    """That many tokens begin."""
    return -(-tokens // TRACE_BLOCK_TOKENS)


def _azure_rows(path: Path) -> Iterator[TraceRow]:
    reader = csv.DictReader(_lines(path))
    for row in reader:
        where = f"{path}:{reader.line_num}"
        try:
            arrival = datetime.fromisoformat(str(row.get("TIMESTAMP")))
        except ValueError as error:
            raise TraceError(
                f"TIMESTAMP {row.get('TIMESTAMP')!r} is no date and time", where=where
            ) from error
        # Read as UTC, whatever zone the machine is in: only differences count.
        start = datetime(1970, 1, 1, tzinfo=arrival.tzinfo)
        yield TraceRow(
            line=reader.line_num,
            arrival_s=(arrival - start).total_seconds(),
            prompt_tokens=_count(row, "ContextTokens", where, least=1),
            output_tokens=_count(row, "GeneratedTokens", where, least=0),
        )


def _in_order(path: Path, rows: Iterator[TraceRow]) -> Iterator[TraceRow]:
    first = latest = None
    for row in rows:
        if first is None:
            first = latest = row.arrival_s
        assert latest is not None
        if row.arrival_s < latest:
            raise TraceError(
                f"arrives {latest - row.arrival_s:g} s before the line above",
                where=f"{path}:{row.line}",
                remedy="sort the trace by time",
            )
        latest = row.arrival_s
        yield TraceRow(
            line=row.line,
            arrival_s=row.arrival_s - first,
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
            hash_ids=row.hash_ids,
        )


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from file
    except OSError as error:
        raise TraceError(f"cannot read the trace: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise TraceError(f"not text: {error}", where=str(path), remedy="unpack it first") from error


def _number(row: dict[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TraceError(f"{key} is {value!r}, not a number", where=where)
    return float(value)


def _count(row: dict[str, Any], key: str, where: str, *, least: int) -> int:
    value = row.get(key)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if type(value) is not int or value < least:
        raise TraceError(f"{key} is {row.get(key)!r}, not a count of at least {least}", where=where)
    return value
