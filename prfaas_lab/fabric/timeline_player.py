"""Playing a timeline on the running loop's clock, real or virtual."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable

from prfaas_lab.fabric.timeline import Change, Observed, Timeline

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
        self._stirred = asyncio.Event()

    def observe(self, observed: Observed) -> None:
        """Say what the run has come to, whenever it has changed. Cheap; call it from the loop."""
        self._observed = observed
        if self._timeline.waits:
            self._stirred.set()

    async def play(self, started_at: float) -> None:
        """Until nothing is left to come; cancel it when the run ends before that.

        `started_at`: loop time of second 0. Deadlines are absolute, so lateness never adds up.
        Raises FabricError when a change cannot be made.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._stirred.clear()
            now_s = loop.time() - started_at + HAIR_S
            for change in self._timeline.advance(now_s, self._observed):
                at = await self._apply(change)
                self._report(change, at - started_at)
            due_s = self._timeline.next_due()
            if due_s == math.inf and not self._timeline.waits:
                return
            await self._rest(None if due_s == math.inf else started_at + due_s)

    async def _rest(self, until: float | None) -> None:
        """Until then, or until something is observed. Without a time only the run can go on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._stirred.wait()
