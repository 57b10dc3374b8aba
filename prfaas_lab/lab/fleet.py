"""All engines as a policy sees them: a decision costs what has changed since the last one, not the number
of engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import overload

from prfaas_lab.lab.engines import Engine
from prfaas_lab.router.values import EngineView, Role

_SLACK = 8
"""A ranking is rebuilt once this many times more ranks lie in it than engines."""


class _Place:
    """An engine in one ranking."""

    __slots__ = ("engine", "entered", "rank")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rank: _Entry | None = None
        """Its own; None while it can be given nothing."""
        self.entered: _Entry | None = None
        """The one in the heap that counts."""


_Entry = tuple[float, float, int, str, _Place]
"""A `Rank`, and whose it is. Names are unique, so that no two places are ever compared."""


def _prefill_entry(place: _Place) -> _Entry:
    """With `router.values.prefill_rank` of its view, without making one."""
    engine = place.engine
    return engine.waiting_s, engine.waiting_tokens, len(engine.orders), engine.name, place


def _decode_entry(place: _Place) -> _Entry:
    """With `router.values.decode_rank` of its view, without making one."""
    engine = place.engine
    return len(engine.orders) / engine.capacity, 0, 0, engine.name, place


_ENTRY: dict[Role, Callable[[_Place], _Entry]] = {"prefill": _prefill_entry, "decode": _decode_entry}


class Fleet:
    """The engines of a run. Each tells it when something about it changes."""

    def __init__(self, engines: Iterable[Engine]) -> None:
        self._engines = tuple(engines)
        self._views = _Views(self._engines)
        self._rankings: dict[tuple[Role, str], _Ranking] = {}
        self._ranked: dict[str, _Ranking] = {}
        """Where each was ranked last."""
        self._changed: dict[str, Engine] = {engine.name: engine for engine in self._engines}
        for engine in self._engines:
            engine.changes = self._changed

    def views(self) -> Sequence[EngineView]:
        """Every engine, each as it is when it is looked at."""
        return self._views

    def idlest(self, role: Role, datacenter: str) -> EngineView | None:
        """The live engine of a datacenter that ranks first."""
        if self._changed:
            self._refresh()
        ranking = self._rankings.get((role, datacenter))
        first = ranking.first() if ranking is not None else None
        return first.view if first is not None else None

    def _refresh(self) -> None:
        for name, engine in self._changed.items():
            ranking = self._ranked.get(name)
            if ranking is None or ranking.role != engine.role:
                if ranking is not None:
                    ranking.remove(name)
                place = engine.role, engine.datacenter
                ranking = self._ranked[name] = self._rankings.setdefault(place, _Ranking(engine.role))
            ranking.put(engine)
        self._changed.clear()


class _Views(Sequence[EngineView]):
    """Views made when they are asked for: most policies look at few of them."""

    def __init__(self, engines: tuple[Engine, ...]) -> None:
        self._engines = engines

    def __len__(self) -> int:
        return len(self._engines)

    @overload
    def __getitem__(self, which: int) -> EngineView: ...
    @overload
    def __getitem__(self, which: slice) -> Sequence[EngineView]: ...
    def __getitem__(self, which: int | slice) -> EngineView | Sequence[EngineView]:
        if isinstance(which, slice):
            return tuple(engine.view for engine in self._engines[which])
        return self._engines[which].view

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if isinstance(other, _Views) else other)

    __hash__ = None  # type: ignore[assignment]  # what it shows changes


class _Ranking:
    """Engines in order of a rank. Of each the heap holds a rank that is no worse than its own: one that
    became worse is put right when it comes up; then, too, what a better one has overtaken is dropped."""

    def __init__(self, role: Role) -> None:
        self.role, self._entry_of = role, _ENTRY[role]
        self._heap: list[_Entry] = []
        self._places: dict[str, _Place] = {}

    def put(self, engine: Engine) -> None:
        """Its rank may be another now."""
        place = self._places.get(engine.name)
        if place is None:
            place = self._places[engine.name] = _Place(engine)
        if not engine.available:
            place.rank = None
            return
        rank = place.rank = self._entry_of(place)
        if place.entered is None or rank < place.entered:
            place.entered = rank
            heappush(self._heap, rank)
            if len(self._heap) > _SLACK * len(self._places):
                self._rebuild()

    def remove(self, name: str) -> None:
        """It ranks elsewhere now."""
        self._places[name].rank = None

    def first(self) -> Engine | None:
        heap = self._heap
        while heap:
            entry = heap[0]
            place = entry[-1]
            rank = place.rank
            if rank is entry:
                return place.engine
            if rank is None or place.entered is not entry:
                heappop(heap)
                if rank is None:
                    place.entered = None
            else:
                place.entered = rank
                heapreplace(heap, rank)
        return None

    def _rebuild(self) -> None:
        """Overtaken ranks must not pile up."""
        for place in self._places.values():
            place.entered = place.rank
        self._heap = [place.rank for place in self._places.values() if place.rank is not None]
        heapify(self._heap)
