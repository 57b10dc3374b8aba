"""asyncio on a virtual clock: the loop jumps to the next timer instead of waiting for it.

It is asyncio's own loop with a selector that never sleeps. When no timer and no callback is left
while the main task still waits, nothing can ever happen again: that is a deadlock, and it is an
error that names the waiting tasks.
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

from prfaas_lab.errors import LabError

T = TypeVar("T")


class Deadlock(LabError):
    """Every task waits for another; virtual time cannot move on."""


_POLL_EVERY = 256
"""Rounds between two looks at the outside: only signals come from there, and a look costs as much as a
round."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and moves only when nothing is left to do before the next timer."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _timer_cancelled_count: int

    def __init__(self) -> None:
        self._now_s = 0.0
        self._rounds = 0
        super().__init__(selectors.SelectSelector())
        self._clock_resolution = 1e-9  # a timer is due when it is less than this ahead

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        """asyncio's own round, without waiting: what it would wait for is where the clock jumps to."""
        ready = self._ready
        self._rounds += 1
        if self._rounds % _POLL_EVERY == 0 or not (ready or self._scheduled):
            self._look_outside()
        if not ready:
            self._jump()
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _jump(self) -> None:
        """To the next timer, and make ready all that are due then."""
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0]._cancelled:
            self._drop()
        if not scheduled:
            raise Deadlock(f"every task waits: {self._waiting()}", where=f"virtual time {self.time():g} s")
        self._now_s = max(self._now_s, scheduled[0].when())
        due = self._now_s + self._clock_resolution
        while scheduled and scheduled[0].when() < due:
            timer = self._drop()
            if not timer._cancelled:
                ready.append(timer)

    def _drop(self) -> asyncio.TimerHandle:
        timer = heapq.heappop(self._scheduled)
        timer._scheduled = False  # type: ignore[attr-defined]
        if timer._cancelled:
            self._timer_cancelled_count -= 1
        return timer

    def _look_outside(self) -> None:
        events = self._selector.select(0)  # type: ignore[attr-defined]
        self._process_events(events)  # type: ignore[attr-defined]
        if self._timer_cancelled_count > len(self._scheduled) // 2:
            self._sweep()

    def _sweep(self) -> None:
        """Timers that were cancelled long before their time must not pile up."""
        kept = []
        for timer in self._scheduled:
            if timer._cancelled:
                timer._scheduled = False  # type: ignore[attr-defined]
            else:
                kept.append(timer)
        heapq.heapify(kept)
        self._scheduled, self._timer_cancelled_count = kept, 0

    def _waiting(self) -> str:
        return ", ".join(sorted(task.get_name() for task in asyncio.all_tasks(self)))


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time. Raises Deadlock, naming the tasks that wait."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
