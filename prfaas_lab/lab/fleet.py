"""All engines as a policy sees them: a decision costs what has changed since the last one, not the number
of engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import overload

from prfaas_lab.lab.engines import Engine
from prfaas_lab.router.values import EngineView, Rank, Role

_SLACK = 8
"""A ranking is rebuilt once this many times more ranks lie in it than engines."""


def _prefill_rank(engine: Engine) -> Rank:
    """`router.values.prefill_rank` of its view, without making one."""
    return engine.waiting_s, engine.waiting_tokens, len(engine.orders), engine.name


def _decode_rank(engine: Engine) -> Rank:
    """`router.values.decode_rank` of its view, without making one."""
    return len(engine.orders) / engine.capacity, 0, 0, engine.name


_RANK: dict[Role, Callable[[Engine], Rank]] = {"prefill": _prefill_rank, "decode": _decode_rank}


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
            engine.on_change = self._note

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

    def _note(self, engine: Engine) -> None:
        self._changed[engine.name] = engine

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
        self.role, self._rank = role, _RANK[role]
        self._heap: list[Rank] = []
        self._engines: dict[str, Engine] = {}
        self._ranks: dict[str, Rank] = {}
        """Of those that can be given something."""
        self._entered: dict[str, Rank] = {}
        """The one in the heap that counts."""

    def put(self, engine: Engine) -> None:
        """Its rank may be another now."""
        name = engine.name
        self._engines[name] = engine
        if not engine.available:
            self._ranks.pop(name, None)
            return
        rank = self._ranks[name] = self._rank(engine)
        entered = self._entered.get(name)
        if entered is None or rank < entered:
            self._entered[name] = rank
            heappush(self._heap, rank)
            if len(self._heap) > _SLACK * len(self._engines):
                self._rebuild()

    def remove(self, name: str) -> None:
        """It ranks elsewhere now."""
        del self._engines[name]
        self._ranks.pop(name, None)

    def first(self) -> Engine | None:
        heap = self._heap
        while heap:
            entry = heap[0]
            name = entry[-1]
            rank = self._ranks.get(name)
            if rank is entry:
                return self._engines[name]
            if rank is None or self._entered.get(name) is not entry:
                heappop(heap)
                if rank is None:
                    self._entered.pop(name, None)
            else:
                self._entered[name] = rank
                heapreplace(heap, rank)
        return None

    def _rebuild(self) -> None:
        """Overtaken ranks must not pile up."""
        self._entered = dict(self._ranks)
        self._heap = list(self._ranks.values())
        heapify(self._heap)
