"""Something done again and again on the loop, in the loop's own time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Ticker:
    """Calls `tick` every `period_s` from `start` to `stop`, by a timer: there is no task to await.

    A tick that raises ends the ticking and is kept in `error`: a broken screen must not end the
    run that it shows.
    """

    def __init__(self, period_s: float, tick: Callable[[], None]) -> None:
        self._period_s, self._tick = period_s, tick
        self._timer: asyncio.TimerHandle | None = None
        self.error: Exception | None = None

    def start(self) -> None:
        """Must be called on a running loop. The first tick comes at once."""
        self._loop = asyncio.get_running_loop()
        self._run()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        try:
            self._tick()
        except Exception as error:
            self.error = error
            return
        self._timer = self._loop.call_later(self._period_s, self._run)
