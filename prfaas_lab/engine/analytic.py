"""Engines that only reckon: a profile's times on the running loop, without executor, bytes or tokens.

They follow the same rules as `prefill` and `decode`, so that simulation and emulation queue and batch
alike; but their cost grows with requests and batch changes, not with chunks, layers or tokens.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from bisect import bisect
from collections import deque
from collections.abc import Callable
from operator import attrgetter

from prfaas_lab.engine.cores import Clock, Timer
from prfaas_lab.engine.stats import EngineStats
from prfaas_lab.errors import EngineError

_HAIR = 1e-6
"""Share of a step by which rounding may miss its end."""


_SINCE = attrgetter("since")


class Job:
    """A prompt in a prefill engine, which calls it as things happen."""

    __slots__ = ("cached_tokens", "gone", "since", "submitted_at", "tokens")

    def __init__(self, tokens: int, since: float | None = None, submitted_at: float | None = None) -> None:
        """`since`: when it came in line before it was withdrawn, here or at another engine. `submitted_at`:
        when its request came; None: when it joins."""
        self.tokens, self.cached_tokens = tokens, 0
        self.gone = False
        """It is computed, or was given up."""
        self.since, self.submitted_at = since, submitted_at

    def find_cached(self) -> int:
        """It is its turn: how many of its tokens need no computing."""
        return 0

    def on_started(self, seconds: float) -> None:
        """The others will take so long."""

    def on_computed(self, started_at: float, finished_at: float) -> None:
        """All are computed; loop times."""


class AnalyticPrefill:
    """First submitted, first served, one prompt at a time (as `PrefillEngine`)."""

    def __init__(
        self, prefill_s: Callable[[float, float], float], *, max_queue: int, clock: Clock | None = None
    ) -> None:
        """`prefill_s(tokens, cached_tokens)`: seconds that a prompt takes of which so much is cached, on the
        clock (the running loop's)."""
        self._prefill_s, self._max_queue = prefill_s, max_queue
        self._loop = asyncio.get_running_loop()
        self._clock: Clock = clock or self._loop
        self._queue: deque[Job] = deque()
        self._given_up = 0
        """Of those in the queue."""
        self._running: Job | None = None
        self._started_at = 0.0
        self._timer: Timer | None = None
        self._busy_s = 0.0
        self._tokens = 0

    @property
    def stats(self) -> EngineStats:
        open_s = 0.0 if self._running is None else self._loop.time() - self._started_at
        return EngineStats(
            queued=len(self._queue) - self._given_up,
            running=int(self._running is not None),
            busy_s=self._busy_s + open_s,
            tokens_total=self._tokens,
        )

    def join(self, job: Job) -> None:
        """Into the line, or to work at once. Raises EngineError when the queue is full."""
        if self._running is None:
            self._start(job)
        elif job.since is not None:  # it was let in before, so that no limit keeps it out
            self._line_up(job, job.since)
        elif (queued := len(self._queue) - self._given_up) < self._max_queue:
            self._line_up(job, self._loop.time() if job.submitted_at is None else job.submitted_at)
        else:
            job.gone = True  # it is in no line that it could leave
            raise EngineError(
                f"the prefill engine has {queued} prompts waiting", remedy="send fewer requests"
            )

    def _line_up(self, job: Job, since: float) -> None:
        """Whoever has waited longest is next."""
        job.since, queue = since, self._queue
        if not queue or (queue[-1].since or 0.0) <= since:
            queue.append(job)
        else:
            queue.insert(bisect(queue, since, key=_SINCE), job)

    def leave(self, job: Job) -> None:
        """Give a prompt up; if it was being computed, the engine turns to the next."""
        if job.gone:
            return
        job.gone = True
        if job is self._running:
            assert self._timer is not None, "it is being computed"
            self._timer.cancel()
            self._turn_to_next()
        else:
            self._given_up += 1

    def withdraw(self, job: Job) -> bool:
        """Give a prompt up if it waits; whether it did."""
        if job.gone or job is self._running:
            return False
        self.leave(job)
        return True

    def _start(self, job: Job) -> None:
        job.cached_tokens = job.find_cached()
        clock, seconds = self._clock, self._prefill_s(job.tokens, job.cached_tokens)
        self._running, self._started_at = job, self._loop.time()
        self._timer = clock.call_at(clock.time() + seconds, self._computed, job)
        job.on_started(seconds)

    def _computed(self, job: Job) -> None:
        self._tokens += job.tokens - job.cached_tokens
        job.gone = True
        job.on_computed(self._started_at, self._loop.time())
        self._turn_to_next()

    def _turn_to_next(self) -> None:
        self._busy_s += self._loop.time() - self._started_at
        self._running = None
        while self._queue:
            job = self._queue.popleft()
            if not job.gone:
                self._start(job)
                return
            self._given_up -= 1


class Sequence:
    """A request in a decode engine, which calls it as things happen."""

    __slots__ = ("gone", "output_tokens")

    def __init__(self, output_tokens: int) -> None:
        self.output_tokens = output_tokens
        self.gone = False
        """It has all its tokens, or was given up."""

    def on_first(self, at: float) -> None:
        """Its first token came at a loop time."""

    def on_last(self, at: float) -> None:
        """Its last token came. Of a single one, both are told."""


class AnalyticDecode:
    """Continuous batching (as `DecodeEngine`): all sequences get a token every step, who waits joins
    between two steps, and its first token comes as it has joined."""

    def __init__(
        self, step_s: Callable[[int], float], *, max_batch: int, max_queue: int, restore_s: float = 0.0,
        clock: Clock | None = None,
    ) -> None:  # fmt: skip
        """`restore_s`: what the engine takes to restore one sequence's cache, and does nothing else
        meanwhile; on the clock (the running loop's), as all its times."""
        self._step_s_of, self._max_batch, self._max_queue = step_s, max_batch, max_queue
        self._restore_s, self._restoring = restore_s, False
        self._loop = asyncio.get_running_loop()
        self._clock: Clock = clock or self._loop
        self._reserved = 0
        self._waiting: deque[Sequence] = deque()
        self._running: list[tuple[int, int, Sequence]] = []
        self._joined = 0
        self._steps = 0
        self._anchor = 0.0
        """The clock's time at which `_steps` were done, and the batch took its present size."""
        self._since = 0.0
        """The loop's time then: an engine is busy also while others have the cores."""
        self._step_s = math.inf
        self._timer: Timer | None = None
        """While it computes; a step whose sequences have all been given up goes on to its end."""
        self._busy_s = 0.0
        self._tokens = 0

    @property
    def stats(self) -> EngineStats:
        computing = self._running or self._restoring
        passed = self._clock.time() - self._anchor if computing else 0.0
        steps = 0 if self._restoring or not computing else math.floor(passed / self._step_s + _HAIR)
        return EngineStats(
            queued=sum(not sequence.gone for sequence in self._waiting),
            running=len(self._running),
            busy_s=self._busy_s + (self._loop.time() - self._since if computing else 0.0),
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

    def join(self, sequence: Sequence) -> None:
        """A request whose cache is there: into the batch as soon as a step ends and there is room."""
        self._waiting.append(sequence)
        if self._timer is None:
            self._between_steps()
        elif not self._restoring and len(self._running) < self._max_batch:
            self._wake_after(self._steps_under_way())

    def leave(self, sequence: Sequence) -> None:
        """Give a request up; its place is free after the step under way."""
        if sequence.gone:
            return
        sequence.gone = True
        kept = [entry for entry in self._running if entry[2] is not sequence]
        if len(kept) < len(self._running):
            heapq.heapify(kept)
            if not self._restoring:
                self._wake_after(self._steps_under_way())
            self._running = kept

    def _steps_under_way(self) -> int:
        """Steps since the anchor, the unfinished one included."""
        return max(1, math.ceil((self._clock.time() - self._anchor) / self._step_s - _HAIR))

    def _wake_after(self, steps: int) -> None:
        at = self._anchor + steps * self._step_s
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._clock.call_at(at, self._between_steps, steps)

    def _between_steps(self, steps: int = 0) -> None:
        """So many steps are done: who is finished leaves, who waits joins, and the next steps begin."""
        self._timer = None
        if steps:
            self._anchor += steps * self._step_s
            self._count_busy()
            self._tokens += steps * len(self._running)
            self._steps += steps
        else:
            self._anchor, self._since = self._clock.time(), self._loop.time()
        done = self._let_go() if self._running and self._running[0][0] <= self._steps else []
        self._tell(done, self._let_in(self._max_batch) if self._waiting and not self._restore_s else [])

    def _restored(self) -> None:
        """The first in line is in the batch, unless it was given up meanwhile."""
        self._timer, self._restoring = None, False
        self._anchor += self._restore_s
        self._count_busy()
        self._tell([], self._let_in(1))

    def _count_busy(self) -> None:
        now = self._loop.time()
        self._busy_s += now - self._since
        self._since = now

    def _tell(self, done: list[Sequence], joined: list[Sequence]) -> None:
        """Go on, and tell who has the last token, and who the first."""
        at = self._anchor if self._clock is self._loop else self._loop.time()
        self._go_on()
        for sequence in done:
            sequence.on_last(at)
        for sequence in joined:
            sequence.on_first(at)
            if sequence.output_tokens == 1:
                sequence.on_last(at)

    def _go_on(self) -> None:
        """Restore the cache of who is next, or begin the next steps."""
        if self._restore_s:
            while self._waiting and self._waiting[0].gone:
                self._waiting.popleft()
            if self._waiting and len(self._running) < self._max_batch:
                self._restoring = True
                self._timer = self._clock.call_at(self._anchor + self._restore_s, self._restored)
                return
        if self._running:
            self._step_s = self._step_s_of(len(self._running))
            self._wake_after(self._running[0][0] - self._steps)

    def _let_go(self) -> list[Sequence]:
        """Who has the last token."""
        done = []
        while self._running and self._running[0][0] <= self._steps:
            sequence = heapq.heappop(self._running)[2]
            sequence.gone = True
            done.append(sequence)
        return done

    def _let_in(self, most: int) -> list[Sequence]:
        """Who has the first token, and is in the batch if more are to come: so many of them at most."""
        joined: list[Sequence] = []
        while self._waiting and len(self._running) < self._max_batch and len(joined) < most:
            sequence = self._waiting.popleft()
            if sequence.gone:
                continue
            joined.append(sequence)
            self._tokens += 1
            if sequence.output_tokens == 1:
                sequence.gone = True
                continue
            self._joined += 1
            entry = (self._steps + sequence.output_tokens - 1, self._joined, sequence)
            heapq.heappush(self._running, entry)
        return joined
