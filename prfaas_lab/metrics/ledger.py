"""The one ledger of a run: every room records into it, everything shown is derived from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prfaas_lab.metrics.events import Event
from prfaas_lab.metrics.handover import Account
from prfaas_lab.metrics.tally import Tally

Subscriber = Callable[[Event], Any]


class Ledger:
    """Takes events, keeps their tally, and passes them on.

    `clock` is the run's one clock (`loop.time`, or a finer reading of the same CLOCK_MONOTONIC) and
    `started_at` its reading at the run's start.
    """

    def __init__(
        self, clock: Callable[[], float], started_at: float,
        *, retire: Callable[[Account], None] | None = None,
    ) -> None:  # fmt: skip
        """`retire` takes the account of each request that has ended, which is then forgotten."""
        self.tally = Tally(retire)
        self._clock, self._started_at = clock, started_at
        self._subscribers: tuple[Subscriber, ...] = ()
        self.record: Subscriber = self.tally.fold
        """Add an event: first to the tally, then to every subscriber in the order they came."""

    def now(self) -> float:
        """Seconds since the run's start: the `at_s` of what happens now."""
        return self._clock() - self._started_at

    def at(self, reading: float) -> float:
        """The `at_s` of another process's reading of the clock."""
        return reading - self._started_at

    def reading(self, at_s: float) -> float:
        """The other way round: what the clock read then."""
        return at_s + self._started_at

    def subscribe(self, notify: Subscriber) -> Callable[[], None]:
        """Have `notify` called with every event from now on; returns what ends that. It must be
        quick, and may read the tally, which holds the event already."""
        self._tell((*self._subscribers, notify))
        return lambda: self._tell(tuple(other for other in self._subscribers if other != notify))

    def _tell(self, subscribers: tuple[Subscriber, ...]) -> None:
        self._subscribers = subscribers
        self.record = self._record_and_tell if subscribers else self.tally.fold

    def _record_and_tell(self, event: Event) -> None:
        self.tally.fold(event)
        for notify in self._subscribers:
            notify(event)
