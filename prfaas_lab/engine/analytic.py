"""Engines that only reckon: a profile's times on the running loop, without executor, bytes or tokens.

They follow the same rules as `prefill` and `decode`, so that simulation and emulation queue and batch
alike; but their cost grows with requests and batch changes, not with chunks, layers or tokens.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable

from prfaas_lab.engine.stats import EngineStats
from prfaas_lab.errors import EngineError

_HAIR = 1e-6
"""Share of a step by which rounding may miss its end."""


def nothing() -> int:
    """Of a prompt is cached."""
    return 0


class AnalyticPrefill:
    """First come, first served, one prompt at a time (as `PrefillEngine`)."""

    def __init__(self, prefill_s: Callable[[float, float], float], *, max_queue: int) -> None:
        """`prefill_s(tokens, cached_tokens)`: seconds that a prompt takes of which so much is cached."""
        self._prefill_s, self._max_queue = prefill_s, max_queue
        self._loop = asyncio.get_running_loop()
        self._queue: deque[asyncio.Future[None]] = deque()
        self._since: float | None = None
        self._busy_s = 0.0
        self._tokens = 0

    @property
    def stats(self) -> EngineStats:
        open_s = 0.0 if self._since is None else self._loop.time() - self._since
        return EngineStats(
            queued=len(self._queue),
            running=int(self._since is not None),
            busy_s=self._busy_s + open_s,
            tokens_total=self._tokens,
        )

    async def run(
        self, tokens: int, on_started: Callable[[float], None], find_cached: Callable[[], int] = nothing
    ) -> tuple[float, float]:
        """Wait in line, then compute a prompt; loop times of start and end. `find_cached` is asked in its
        turn how many of its tokens need no computing, and `on_started` told how many seconds the others
        take. Raises EngineError when the queue is full."""
        if self._since is not None:
            await self._line_up()
        started_at = self._since = self._loop.time()
        cached_tokens = find_cached()
        seconds = self._prefill_s(tokens, cached_tokens)
        on_started(seconds)
        try:
            await asyncio.sleep(seconds)
            self._tokens += tokens - cached_tokens
        finally:
            finished_at = self._loop.time()
            self._busy_s += finished_at - started_at
            self._call_next()
        return started_at, finished_at

    async def _line_up(self) -> None:
        if len(self._queue) >= self._max_queue:
            raise EngineError(
                f"the prefill engine has {len(self._queue)} prompts waiting", remedy="send fewer requests"
            )
        turn = self._loop.create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._call_next()
            raise

    def _call_next(self) -> None:
        """The next in line that still waits. It has the engine from now on, before it even runs."""
        self._since = None
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                self._since = self._loop.time()
                turn.set_result(None)
                return


class Sequence:
    """A request in a decode engine: when its first and its last token came, as loop times."""

    __slots__ = ("first", "gone", "last", "output_tokens")

    def __init__(self, output_tokens: int, loop: asyncio.AbstractEventLoop) -> None:
        self.output_tokens = output_tokens
        self.first: asyncio.Future[float] = loop.create_future()
        self.last: asyncio.Future[float] = loop.create_future()
        self.gone = False


class AnalyticDecode:
    """Continuous batching (as `DecodeEngine`): all sequences get a token every step, who waits joins
    between two steps, and its first token comes as it joins."""

    def __init__(self, step_s: Callable[[float], float], *, max_batch: int, max_queue: int) -> None:
        self._step_s_of, self._max_batch, self._max_queue = step_s, max_batch, max_queue
        self._loop = asyncio.get_running_loop()
        self._reserved = 0
        self._waiting: deque[Sequence] = deque()
        self._running: list[tuple[int, int, Sequence]] = []
        self._joined = 0
        self._steps = 0
        self._anchor = 0.0
        """Loop time at which `_steps` were done, and the batch took its present size."""
        self._step_s = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._busy_s = 0.0
        self._tokens = 0

    @property
    def stats(self) -> EngineStats:
        passed = self._loop.time() - self._anchor if self._running else 0.0
        steps = math.floor(passed / self._step_s + _HAIR) if self._running else 0
        return EngineStats(
            queued=sum(not sequence.gone for sequence in self._waiting),
            running=len(self._running),
            busy_s=self._busy_s + passed,
            tokens_total=self._tokens + steps * len(self._running),
        )

    def reserve(self) -> None:
        """Room for one request, until `release`. Raises EngineError when there is none."""
        if self._reserved >= self._max_batch + self._max_queue:
            raise EngineError(
                f"the decode engine has {self._reserved} requests", remedy="send fewer or shorter requests"
            )
        self._reserved += 1

    def release(self) -> None:
        self._reserved -= 1

    def join(self, output_tokens: int) -> Sequence:
        """A request whose cache is there: into the batch as soon as a step ends and there is room."""
        sequence = Sequence(output_tokens, self._loop)
        self._waiting.append(sequence)
        if not self._running:
            self._between_steps()
        elif len(self._running) < self._max_batch:
            self._wake_after(self._steps_under_way())
        return sequence

    def leave(self, sequence: Sequence) -> None:
        """Give a request up; its place is free after the step under way."""
        if sequence.gone or sequence.last.done():
            return
        sequence.gone = True
        kept = [entry for entry in self._running if entry[2] is not sequence]
        if len(kept) < len(self._running):
            heapq.heapify(kept)
            self._wake_after(self._steps_under_way())
            self._running = kept

    def _steps_under_way(self) -> int:
        """Steps since the anchor, the unfinished one included."""
        return max(1, math.ceil((self._loop.time() - self._anchor) / self._step_s - _HAIR))

    def _wake_after(self, steps: int) -> None:
        at = self._anchor + steps * self._step_s
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._between_steps, steps)

    def _between_steps(self, steps: int = 0) -> None:
        """So many steps are done: who is finished leaves, who waits joins, and the next steps begin."""
        self._timer = None
        if steps:
            self._anchor += steps * self._step_s
            self._busy_s += steps * self._step_s
            self._tokens += steps * len(self._running)
            self._steps += steps
        else:
            self._anchor = self._loop.time()
        self._let_go()
        while self._waiting and len(self._running) < self._max_batch:
            self._let_in(self._waiting.popleft())
        if self._running:
            self._step_s = self._step_s_of(len(self._running))
            self._wake_after(self._running[0][0] - self._steps)

    def _let_go(self) -> None:
        while self._running and self._running[0][0] <= self._steps:
            sequence = heapq.heappop(self._running)[2]
            if not sequence.last.done():
                sequence.last.set_result(self._anchor)

    def _let_in(self, sequence: Sequence) -> None:
        if sequence.gone:
            return
        self._tokens += 1
        if not sequence.first.done():
            sequence.first.set_result(self._anchor)
        if sequence.output_tokens == 1:
            sequence.last.set_result(self._anchor)
            return
        self._joined += 1
        entry = (self._steps + sequence.output_tokens - 1, self._joined, sequence)
        heapq.heappush(self._running, entry)
