"""asyncio on a virtual clock: the loop jumps to the next timer instead of waiting for it.

It is asyncio's own loop with a selector that never sleeps. When no timer and no callback is left
while the main task still waits, nothing can ever happen again: that is a deadlock, and it is an
error that names the waiting tasks.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, TypeVar

from prfaas_lab.errors import LabError

T = TypeVar("T")


class Deadlock(LabError):
    """Every task waits for another; virtual time cannot move on."""


_INSTANT_S = 1e-9
"""Timers less than this apart are due at once."""
_POLL_EVERY = 256
"""Callbacks between two looks at the outside: only signals come from there, and a look costs as much as
several of them."""


class _Handle(asyncio.Handle):
    """A callback that is due. What asyncio's own notes of it for debugging costs more than all else."""

    __slots__ = ()

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: VirtualTimeLoop,
        context: Context | None,
    ) -> None:  # fmt: skip
        self._context = copy_context() if context is None else context
        self._loop, self._callback, self._args = loop, callback, args
        self._cancelled, self._repr, self._source_traceback = False, None, None


class _Timer(asyncio.TimerHandle):
    """A callback that is due at a time."""

    __slots__ = ()

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], loop: VirtualTimeLoop,
        context: Context | None,
    ) -> None:  # fmt: skip
        self._context = copy_context() if context is None else context
        self._loop, self._callback, self._args = loop, callback, args
        self._cancelled, self._repr, self._source_traceback = False, None, None
        self._when, self._scheduled = when, True


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and moves only when nothing is left to do before the next timer. Timers of one
    instant run in the order they were made. A callback that raises ends the run: it is a bug of ours."""

    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(self) -> None:
        self._now_s = 0.0
        self._timers: list[tuple[float, int, _Timer]] = []
        self._numbers = itertools.count()
        self._cancelled = 0
        """Timers that wait for nothing."""
        super().__init__(selectors.SelectSelector())

    def time(self) -> float:
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def _run_once(self) -> None:
        """Many of asyncio's rounds, none of which waits: what it would wait for is where the clock jumps."""
        self._look_outside()
        ready = self._ready
        for _ in range(_POLL_EVERY):
            if not ready:
                self._jump()
            handle = ready.popleft()
            if not handle._cancelled:
                handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
            if self._stopping:
                return

    def _jump(self) -> None:
        """To the next timer, and make ready all that are due then."""
        timers, ready = self._timers, self._ready
        while timers and timers[0][2]._cancelled:
            self._pop()
        if not timers:
            self._look_outside()
            if not ready:
                raise Deadlock(
                    f"every task waits: {self._waiting()}", where=f"virtual time {self.time():g} s"
                )
            return
        self._now_s = max(self._now_s, timers[0][0])
        due = self._now_s + _INSTANT_S
        while timers and timers[0][0] < due:
            timer = self._pop()
            if not timer._cancelled:
                ready.append(timer)

    def _pop(self) -> _Timer:
        _, _, timer = heapq.heappop(self._timers)
        timer._scheduled = False
        self._cancelled -= timer._cancelled
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio's, called by every timer as it is cancelled."""
        self._cancelled += handle._scheduled  # type: ignore[attr-defined]

    def _look_outside(self) -> None:
        events = self._selector.select(0)  # type: ignore[attr-defined]
        self._process_events(events)  # type: ignore[attr-defined]
        if self._cancelled > len(self._timers) // 2:
            self._sweep()

    def _sweep(self) -> None:
        """Timers that were cancelled long before their time must not pile up."""
        for _, _, timer in self._timers:
            timer._scheduled = not timer._cancelled
        self._timers[:] = [entry for entry in self._timers if entry[2]._scheduled]
        heapq.heapify(self._timers)
        self._cancelled = 0

    def _waiting(self) -> str:
        return ", ".join(sorted(task.get_name() for task in asyncio.all_tasks(self)))


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time. Raises Deadlock, naming the tasks that wait."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
