"""asyncio on a virtual clock: the loop jumps to the next timer instead of waiting for it.

It is asyncio's own loop with a selector that never sleeps. When no timer and no callback is left
while the main task still waits, nothing can ever happen again: that is a deadlock, and it is an
error that names the waiting tasks.
"""

from __future__ import annotations

import asyncio
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


class _Call(Struct, gc=False):
    """A callback that is due at a time. asyncio's own handles note for debugging what costs more than all
    else; and no collector looks here, since what a call refers to forgets it, or it that, in time."""

    at_s: float
    callback: Callable[..., object] | None
    """None once it was called, or cancelled."""
    args: tuple[Any, ...]
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
        self._times: list[float] = []
        """At which something is due: a heap of bare numbers, since whatever else lay in it would be looked up
        in memory at each of its levels."""
        self._timers: dict[float, _Call | list[_Call]] = {}
        """What is due at each of them; of several, in the order in which they were asked for."""
        self.cancelled = 0
        """Timers that wait for nothing; at most."""
        super().__init__(selectors.SelectSelector())

    def time(self) -> float:
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Call:
        if context is not None:
            callback, args = context.run, (callback, *args)
        call = _Call(self._now_s, callback, args, self)
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
        if context is not None:
            callback, args = context.run, (callback, *args)
        timer = _Call(when, callback, args, self)
        due = self._timers.setdefault(when, timer)
        if due is timer:
            heappush(self._times, when)
        elif isinstance(due, list):
            due.append(timer)
        else:
            self._timers[when] = [due, timer]
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
            callback, args = call.callback, call.args
            if callback is None:
                continue
            call.callback, call.args = None, ()
            callback(*args)
            if self._stopping:
                return

    def _jump(self) -> None:
        """To the next timer, and make ready all that are due then."""
        times, ready, until = self._times, self._ready, math.inf
        while times and times[0] < until:
            at_s = heappop(times)
            due = self._timers.pop(at_s)
            for timer in due if isinstance(due, list) else (due,):
                if timer.callback is None:
                    self.cancelled -= 1
                elif ready:
                    ready.append(timer)
                else:
                    if at_s > self._now_s:
                        self._now_s = at_s
                    until = self._now_s + _INSTANT_S
                    ready.append(timer)
        if not ready:
            self._look_outside()
        if not ready:
            raise Deadlock(f"every task waits: {self._waiting()}", where=f"virtual time {self.time():g} s")

    def _look_outside(self) -> None:
        events = self._selector.select(0)  # type: ignore[attr-defined]
        self._process_events(events)  # type: ignore[attr-defined]
        if self.cancelled > len(self._times) // 2:
            self._sweep()

    def _sweep(self) -> None:
        """Timers that were cancelled long before their time must not pile up."""
        for at_s, due in [*self._timers.items()]:
            waiting = [timer for timer in _several(due) if timer.callback]
            if waiting:
                self._timers[at_s] = waiting
            else:
                del self._timers[at_s]
        self._times[:] = self._timers
        heapify(self._times)
        self.cancelled = 0

    def close(self) -> None:
        """Forget what still waits, so that memory is freed by count."""
        super().close()
        for due in self._timers.values():
            for timer in _several(due):
                timer.cancel()

    def _waiting(self) -> str:
        return ", ".join(sorted(task.get_name() for task in asyncio.all_tasks(self)))


def _several(due: _Call | list[_Call]) -> list[_Call]:
    return due if isinstance(due, list) else [due]


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time. Raises Deadlock, naming the tasks that wait."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
