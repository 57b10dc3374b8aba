"""All engines as a policy sees them, kept current: a decision costs what has changed since the last one,
not the number of engines."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from prfaas_lab.lab.engines import Engine
from prfaas_lab.router.values import EngineView, Rank, Role, decode_rank, prefill_rank

_RANK: dict[Role, Callable[[EngineView], Rank]] = {"prefill": prefill_rank, "decode": decode_rank}
_SLACK = 8
"""A ranking is rebuilt once this many times more ranks lie in it than engines."""


class Fleet:
    """The engines of a run. Each tells it when something about it changes."""

    def __init__(self, engines: Iterable[Engine]) -> None:
        self._engines = list(engines)
        self._views = [engine.view for engine in self._engines]
        self._numbers = {engine.name: number for number, engine in enumerate(self._engines)}
        self._rankings: dict[tuple[Role, str], _Ranking] = {}
        self._changed: dict[str, Engine] = {}
        for engine, view in zip(self._engines, self._views, strict=True):
            engine.on_change = self._note
            self._ranking(view.role, view.datacenter).put(view)

    def views(self) -> tuple[EngineView, ...]:
        """Every engine now."""
        self._refresh()
        return tuple(self._views)

    def idlest(self, role: Role, datacenter: str) -> EngineView | None:
        """The live engine of a datacenter that ranks first; as of the last `views`."""
        return self._ranking(role, datacenter).first()

    def _note(self, engine: Engine) -> None:
        self._changed[engine.name] = engine

    def _refresh(self) -> None:
        for name, engine in self._changed.items():
            before, view = self._views[self._numbers[name]], engine.view
            self._views[self._numbers[name]] = view
            if before.role != view.role:
                self._ranking(before.role, before.datacenter).remove(name)
            self._ranking(view.role, view.datacenter).put(view)
        self._changed.clear()

    def _ranking(self, role: Role, datacenter: str) -> _Ranking:
        found = self._rankings.get((role, datacenter))
        if found is None:
            found = self._rankings[role, datacenter] = _Ranking(_RANK[role])
        return found


class _Ranking:
    """Engines in order of a rank. What was overtaken by a newer view is skipped when it comes up."""

    def __init__(self, rank: Callable[[EngineView], Rank]) -> None:
        self._rank = rank
        self._heap: list[tuple[Rank, int, EngineView]] = []
        self._puts = 0
        self._current: dict[str, EngineView] = {}

    def put(self, view: EngineView) -> None:
        self._current[view.name] = view
        self._puts += 1  # between equal ranks of one engine, which have no order themselves
        if view.alive:
            heapq.heappush(self._heap, (self._rank(view), self._puts, view))
        if len(self._heap) > _SLACK * len(self._current) + _SLACK:
            current = enumerate(self._current.values())
            self._heap = [(self._rank(view), number, view) for number, view in current if view.alive]
            heapq.heapify(self._heap)

    def remove(self, name: str) -> None:
        """It ranks elsewhere now."""
        self._current.pop(name, None)

    def first(self) -> EngineView | None:
        heap = self._heap
        while heap:
            view = heap[0][2]
            if view.alive and self._current.get(view.name) is view:
                return view
            heapq.heappop(heap)
        return None
