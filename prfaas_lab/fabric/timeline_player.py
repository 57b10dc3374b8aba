"""Playing a timeline on the running loop's clock, real or virtual."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable

from prfaas_lab.fabric.timeline import Change, Observed, Timeline
from prfaas_lab.spec.scenario import Event

HAIR_S = 1e-6
"""A loop may wake us this much early (its resolution, rounding): what is due then is due now."""


class TimelinePlayer:
    """Applies each change at its time, and reports when it really took effect."""

    def __init__(
        self,
        timeline: Timeline,
        *,
        apply: Callable[[Change], Awaitable[float]],
        report: Callable[[Change, float], None],
    ) -> None:
        """`apply` makes a change and returns the loop time at which it had taken effect (a kernel or
        process is asked through `asyncio.to_thread`). `report(change, at_s)` is told that time in
        seconds since the start; `change.due_s` is when it was due."""
        self._timeline, self._apply, self._report = timeline, apply, report
        self._observed = Observed()
        self._stirred, self._settled = asyncio.Event(), asyncio.Event()
        self._started_at = 0.0

    def observe(self, observed: Observed) -> None:
        """Say what the run has come to, whenever it has changed. Cheap; call it from the loop."""
        self._observed = observed
        if self._timeline.waits:
            self._stirred.set()

    async def befall(self, event: Event) -> None:
        """Have an event happen now, while `play` runs; returns when it has taken effect."""
        self._timeline.add(event, asyncio.get_running_loop().time() - self._started_at)
        self._settled.clear()
        self._stirred.set()
        await self._settled.wait()

    async def play(self, started_at: float, *, endless: bool = False) -> None:
        """Until nothing is left to come, and `endless` for what may still befall; cancel it when the run
        ends before that.

        `started_at`: loop time of second 0. Deadlines are absolute, so lateness never adds up.
        Raises FabricError when a change cannot be made.
        """
        loop, self._started_at = asyncio.get_running_loop(), started_at
        while True:
            self._stirred.clear()
            now_s = loop.time() - started_at + HAIR_S
            for change in self._timeline.advance(now_s, self._observed):
                at = await self._apply(change)
                self._report(change, at - started_at)
            due_s = self._timeline.next_due()
            if not self._stirred.is_set():
                self._settled.set()
            if due_s == math.inf and not self._timeline.waits and not endless:
                return
            await self._rest(None if due_s == math.inf else started_at + due_s)

    async def _rest(self, until: float | None) -> None:
        """Until then, or until something is observed. Without a time only the run can go on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._stirred.wait()
