"""The line before an engine: one has its turn at a time, the others wait for theirs."""

from __future__ import annotations

import asyncio
from bisect import insort
from dataclasses import dataclass
from operator import attrgetter


class Withdrawn(Exception):
    """Who waited was asked to leave the line, and may come back to the same place in another."""

    def __init__(self, since: float) -> None:
        super().__init__(f"withdrawn, after waiting since {since}")
        self.since = since


class Line:
    """Whoever has waited longest is next."""

    def __init__(self) -> None:
        self._places: list[_Place] = []
        self._taken = False

    def __len__(self) -> int:
        """How many wait."""
        return sum(not place.turn.done() for place in self._places)

    async def turn(self, name: str, since: float) -> None:
        """Wait, from `since` on (on one clock for all), and give the turn back with `done`. Raises Withdrawn;
        then, as when cancelled, there is nothing to give back."""
        if not self._taken:
            self._taken = True
            return
        place = _Place(name, since, asyncio.get_running_loop().create_future())
        insort(self._places, place, key=attrgetter("since"))
        try:
            await place.turn
        except BaseException:
            if place.came:  # it was cancelled before it noticed
                self.done()
            elif place in self._places:
                self._places.remove(place)
            raise

    def done(self) -> None:
        """It is the next one's turn."""
        while self._places:
            place = self._places.pop(0)
            if not place.turn.done():
                place.turn.set_result(None)
                return
        self._taken = False

    def withdraw(self, name: str) -> None:
        """Whoever waits under this name leaves the line; nobody else does."""
        for place in self._places:
            if place.name == name and not place.turn.done():
                place.turn.set_exception(Withdrawn(place.since))
                return


@dataclass(slots=True, eq=False)
class _Place:
    name: str
    since: float
    turn: asyncio.Future[None]

    @property
    def came(self) -> bool:
        """Whether its turn has come."""
        return self.turn.done() and not self.turn.cancelled() and self.turn.exception() is None
