"""The cores of one machine, shared by all engines that compute on it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Protocol

_HAIR_S = 1e-9
"""What rounding may make a timer early."""


def share(cores: float, computing: int) -> float:
    """What each engine has of a core while so many compute: as much as any other, and one at most.

    Which of them a kernel favours is its chance of the moment: of one that decodes and two that prefill on
    two cores, the first had its steps undisturbed in some emulations, and three times as long in others.
    """
    return min(1.0, cores / computing) if computing else 1.0


class Timer(Protocol):
    """What waits for a time of a clock."""

    def cancel(self) -> None: ...
    def when(self) -> float: ...


class Clock(Protocol):
    """What an engine's times are read on: the running loop, or `Cores`."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[..., object], /, *args: object) -> Timer: ...


class Cores:
    """A machine's cores as the clock of the engines that share them: its time is what one that always
    computes has had of a core, in seconds. That is the running loop's, slower while engines share. Whoever
    waits for `call_at` computes until then, so an engine has one such timer while it is busy, and none while
    it is not."""

    def __init__(self, cores: float) -> None:
        assert cores > 0, "there is no machine without a core"
        self._cores, self._loop = cores, asyncio.get_running_loop()
        self._had_s, self._at, self._pace = 0.0, self._loop.time(), 1.0
        self._computing = 0
        self._timers: list[tuple[float, int, CoreTimer]] = []
        self._numbers = itertools.count()
        self._alarm: asyncio.TimerHandle | None = None

    def time(self) -> float:
        now = self._loop.time()
        self._had_s += (now - self._at) * self._pace
        self._at = now
        return self._had_s

    def call_at(self, when: float, callback: Callable[..., object], /, *args: object) -> CoreTimer:
        """For an engine, which computes until then."""
        return self._wait(CoreTimer(self, when, lambda: callback(*args), computes=True))

    def tell_at(self, when: float, callback: Callable[..., object], /, *args: object) -> CoreTimer:
        """For who follows an engine's progress, and takes no core."""
        return self._wait(CoreTimer(self, when, lambda: callback(*args), computes=False))

    def stopped(self, timer: CoreTimer) -> None:
        """A timer's own: it waits no more."""
        if timer.computes:
            self._compute(-1)

    def _wait(self, timer: CoreTimer) -> CoreTimer:
        heapq.heappush(self._timers, (timer.when(), next(self._numbers), timer))
        if timer.computes:
            self._compute(1)
        else:
            self._set_alarm()
        return timer

    def _compute(self, more: int) -> None:
        """From now on, so many more engines do."""
        self.time()
        self._computing += more
        self._pace = share(self._cores, self._computing)
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._timers and not self._timers[0][2].waits:
            heapq.heappop(self._timers)
        if self._timers:
            left_s = max(0.0, self._timers[0][0] - self.time())
            self._alarm = self._loop.call_at(self._at + left_s / self._pace, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        due = self.time() + _HAIR_S
        while self._timers and self._timers[0][0] <= due:
            when, _, timer = heapq.heappop(self._timers)
            if timer.waits:
                self._had_s = max(self._had_s, when)
                timer.cancel()
                timer.callback()
        self._set_alarm()


class CoreTimer:
    """A callback that is due at a time of a `Cores`."""

    __slots__ = ("_clock", "_when", "callback", "computes", "waits")

    def __init__(self, clock: Cores, when: float, callback: Callable[[], object], *, computes: bool) -> None:
        self._clock, self._when, self.callback, self.computes = clock, when, callback, computes
        self.waits = True

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        if self.waits:
            self.waits = False
            self._clock.stopped(self)
