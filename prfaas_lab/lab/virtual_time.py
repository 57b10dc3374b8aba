"""asyncio on a virtual clock: the loop jumps to the next timer instead of waiting for it.

It is asyncio's own loop with a selector that never sleeps. When no timer and no callback is left
while the main task still waits, nothing can ever happen again: that is a deadlock, and it is an
error that names the waiting tasks.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar

from msgspec import Struct

from prfaas_lab.errors import LabError

T = TypeVar("T")


class Deadlock(LabError):
    """Every task waits for another; virtual time cannot move on."""


_INSTANT_S = 1e-9
"""Timers less than this apart are due at once."""
_POLL_EVERY = 256
"""Callbacks between two looks at the outside: only signals come from there, and a look costs as much as
several of them."""


class _Call(Struct, order=True):
    """A callback that is due at a time; of one time, the first that was made. It is its own entry in the heap
    of timers. asyncio's own handles note for debugging what costs more than all else."""

    at_s: float
    number: int
    callback: Callable[..., object] | None
    """None once it was called, or cancelled."""
    args: tuple[Any, ...]
    context: Context | None
    """None: the loop's own."""
    loop: VirtualTimeLoop

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback, self.args = None, ()
            self.loop.cancelled += 1

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self.at_s


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and moves only when nothing is left to do before the next timer. Timers of one
    instant run in the order they were made. A callback that raises ends the run: it is a bug of ours."""

    _ready: deque[_Call]
    _stopping: bool

    def __init__(self) -> None:
        self._now_s = 0.0
        self._timers: list[_Call] = []
        self._numbers = itertools.count()
        self.cancelled = 0
        """Timers that wait for nothing; at most."""
        super().__init__(selectors.SelectSelector())

    def time(self) -> float:
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Call:
        call = _Call(self._now_s, 0, callback, args, context, self)
        self._ready.append(call)
        return call

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Call:
        call = self.call_soon(callback, *args, context=context)
        self._write_to_self()  # type: ignore[attr-defined]
        return call

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Call:
        timer = _Call(when, next(self._numbers), callback, args, context, self)
        heappush(self._timers, timer)
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Call:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def _add_callback(self, handle: asyncio.Handle) -> None:
        """asyncio's, for what came from outside: signals."""
        if not handle.cancelled():
            self.call_soon(handle._run)

    def _run_once(self) -> None:
        """Many of asyncio's rounds, none of which waits: what it would wait for is where the clock jumps."""
        self._look_outside()
        ready = self._ready
        for _ in range(_POLL_EVERY):
            if not ready:
                self._jump()
            call = ready.popleft()
            callback, call.callback = call.callback, None
            if callback is None:
                continue
            if call.context is None:
                callback(*call.args)
            else:
                call.context.run(callback, *call.args)
            if self._stopping:
                return

    def _jump(self) -> None:
        """To the next timer, and make ready all that are due then."""
        timers, ready, due = self._timers, self._ready, math.inf
        while timers and timers[0].at_s < due:
            timer = heappop(timers)
            if timer.callback is None:
                self.cancelled -= 1
                continue
            if not ready:
                self._now_s = max(self._now_s, timer.at_s)
                due = self._now_s + _INSTANT_S
            ready.append(timer)
        if not ready:
            self._look_outside()
        if not ready:
            raise Deadlock(f"every task waits: {self._waiting()}", where=f"virtual time {self.time():g} s")

    def _look_outside(self) -> None:
        events = self._selector.select(0)  # type: ignore[attr-defined]
        self._process_events(events)  # type: ignore[attr-defined]
        if self.cancelled > len(self._timers) // 2:
            self._sweep()

    def _sweep(self) -> None:
        """Timers that were cancelled long before their time must not pile up."""
        self._timers[:] = [timer for timer in self._timers if timer.callback is not None]
        heapify(self._timers)
        self.cancelled = 0

    def _waiting(self) -> str:
        return ", ".join(sorted(task.get_name() for task in asyncio.all_tasks(self)))


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time. Raises Deadlock, naming the tasks that wait."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
