"""asyncio on a virtual clock: the loop jumps to the next timer instead of waiting for it.

It is asyncio's own loop with a selector that never sleeps. When no timer and no callback is left
while the main task still waits, nothing can ever happen again: that is a deadlock, and it is an
error that names the waiting tasks.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from prfaas_lab.errors import LabError

T = TypeVar("T")


class Deadlock(LabError):
    """Every task waits for another; virtual time cannot move on."""


_POLL_EVERY = 256
"""Rounds between two real polls: only signals come from outside, and a poll costs as much as a round."""


class _TimelessSelector(selectors.SelectSelector):
    """Polls without waiting; what it was asked to wait for is added to the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.stuck = False
        self._rounds = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._rounds += 1
        if timeout is None or self._rounds % _POLL_EVERY == 0:
            ready = super().select(0)
            if ready:
                return ready
        if timeout is None:
            self.stuck = True
        elif timeout > 0.0:
            self.now_s += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and moves only when nothing is left to do before the next timer."""

    def __init__(self) -> None:
        self._timeless = _TimelessSelector()
        super().__init__(self._timeless)
        self._clock_resolution = 1e-9  # a timer is due when it is less than this ahead

    def time(self) -> float:
        return self._timeless.now_s

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]
        if self._timeless.stuck:
            self._timeless.stuck = False
            if not self._ready:  # type: ignore[attr-defined]
                raise Deadlock(
                    f"every task waits: {self._waiting()}", where=f"virtual time {self.time():g} s"
                )

    def _waiting(self) -> str:
        return ", ".join(sorted(task.get_name() for task in asyncio.all_tasks(self)))


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time. Raises Deadlock, naming the tasks that wait."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
