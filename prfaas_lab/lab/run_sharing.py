"""What a run's engines had of the cores that they shared: seconds of computing, out of seconds of the run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from prfaas_lab.engine.cores import share

Row = Mapping[str, Any]
Span = tuple[float, float]


class Sharing:
    """Made of a run's requests: an engine prefilled from a prefill's start to its end, and decoded from a
    KVCache's arrival to the last token; in between they shared the cores as `engine.cores` has it."""

    def __init__(self, rows: Iterable[Row], cores: float) -> None:
        changes = sorted(_changes(rows))
        self._at = np.array([at for at, _ in changes])
        self._had: list[float] = []
        computing, had, before = 0, 0.0, 0.0
        for at, more in changes:
            had += (at - before) * share(cores, computing)
            self._had.append(had)
            computing += more
            before = at

    def had_s(self, begin_s: float, end_s: float) -> float:
        """Seconds of a core that an engine had which computed all the time between two stamps of the run."""
        first, last = np.interp([begin_s, end_s], self._at, self._had)
        return float(last - first)


def _changes(rows: Iterable[Row]) -> Iterable[tuple[float, int]]:
    """When engines began to compute (1), and when they stopped (-1)."""
    spans: defaultdict[str, list[Span]] = defaultdict(list)
    for row in rows:
        spans[row["prefill"]].append((row["prefill_started_s"], row["prefill_finished_s"]))
        spans[row["decode"]].append((row["transfer_finished_s"], row["last_token_s"]))
    for of_engine in spans.values():
        for begin, end in _joined(of_engine):
            yield begin, 1
            yield end, -1


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Spans that overlap made one."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((begin, end))
    return joined
