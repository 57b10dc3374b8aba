"""The prefill engine: prompts wait in line, one is computed at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prfaas_lab.engine.computed import Computed
from prfaas_lab.engine.executor import Emit, PrefillExecutor
from prfaas_lab.engine.kept import Segment
from prfaas_lab.engine.line import Line
from prfaas_lab.engine.prefix_cache import Found, PrefixCache
from prfaas_lab.engine.stats import BusyMeter, EngineStats
from prfaas_lab.errors import EngineError
from prfaas_lab.kvcache import Prompt
from prfaas_lab.workload.request import GREEDY, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillJob:
    """A prompt, and the names of its blocks where it may be found in, and kept by, a prefix cache."""

    request_id: str
    prompt: Sequence[int]
    """Token ids; a paced engine only reads how many there are."""
    sampling: Sampling = GREEDY
    blocks: Prompt | None = None
    submitted_at: float | None = None
    """On the engine's clock, when its request came; None: now."""
    since: float | None = None
    """On the engine's clock, when it came in line before it was withdrawn (here, or at another engine that
    reads the same clock); None: it comes now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillResult:
    """Times are on the engine's clock. The prompt's tokens are cached or computed; `decoded_tokens` of
    the cached were completed by a decode engine. `tail` is what no prefix cache has of what was emitted."""

    first_token: int
    computed_tokens: int
    cached_tokens: int
    started_at: float
    finished_at: float
    decoded_tokens: int = 0
    tail: tuple[Segment, ...] = ()


class PrefillEngine:
    """First submitted, first served. Close it with `async with`; cancel a job by cancelling its `run`, or
    `withdraw` it as long as it waits."""

    def __init__(
        self,
        executor: PrefillExecutor,
        *,
        max_queue: int,
        clock: Callable[[], float],
        cache: PrefixCache | None = None,
    ) -> None:
        self._executor, self._max_queue, self._clock, self.cache = executor, max_queue, clock, cache
        self._line = Line()
        self._busy = BusyMeter(clock)
        self._tokens = 0
        self._closed = False

    async def __aenter__(self) -> PrefillEngine:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._closed = True
        await self._executor.close()

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            queued=len(self._line),
            running=int(self._busy.running),
            busy_s=self._busy.total_s,
            tokens_total=self._tokens,
        )

    async def run(
        self, job: PrefillJob, emit: Emit, on_started: Callable[[], None] = lambda: None
    ) -> PrefillResult:
        """Wait for the engine, then compute the prompt. `emit` gets each segment as it is ready.

        `emit` must not block; what it does not send at once it holds, at most one request's KVCache.
        Raises `EngineError` when the queue is full or the engine closed, `Withdrawn` when it was withdrawn,
        and whatever `emit` raised. A job that comes back is let in though the queue is full.
        """
        queued = len(self._line)
        if self._closed or (queued >= self._max_queue and job.since is None):
            state = "is closed" if self._closed else f"has {queued} prompts waiting"
            raise EngineError(
                f"the prefill engine {state}", where=job.request_id, remedy="send fewer requests"
            )
        arrived_at = asyncio.get_running_loop().time()
        known = (at for at in (job.since, job.submitted_at) if at is not None)
        await self._line.turn(job.request_id, next(known, self._clock()))
        try:
            return await self._compute(job, emit, on_started, arrived_at)
        finally:
            self._line.done()

    def withdraw(self, request_id: str) -> None:
        """A job that waits leaves: its `run` raises `Withdrawn`. One that has begun goes on."""
        self._line.withdraw(request_id)

    async def _compute(
        self, job: PrefillJob, emit: Emit, on_started: Callable[[], None], arrived_at: float
    ) -> PrefillResult:
        if self._closed:
            raise EngineError("the prefill engine is closed", where=job.request_id)
        started_at = self._clock()
        on_started()
        with self._busy:
            found, computed, first_token = await self._prefill(job, emit, arrived_at)
        cached_tokens = 0 if found is None else found.cached_tokens
        computed_tokens = len(job.prompt) - cached_tokens
        self._tokens += computed_tokens
        return PrefillResult(
            first_token=first_token,
            computed_tokens=computed_tokens,
            cached_tokens=cached_tokens,
            started_at=started_at,
            finished_at=self._clock(),
            decoded_tokens=0 if found is None else found.decoded_tokens,
            tail=() if computed is None else tuple(computed.tail),
        )

    async def _prefill(
        self, job: PrefillJob, emit: Emit, arrived_at: float
    ) -> tuple[Found | None, Computed | None, int]:
        """What of the prompt was found cached, what was computed, and the first token.

        The cache is asked now and not when the job came: those before it in line have filled it since.
        """
        if self.cache is None or job.blocks is None:
            first_token = await self._executor.prefill(
                job.prompt, emit, sampling=job.sampling, arrived_at=arrived_at
            )
            return None, None, first_token
        async with self.cache.at_hand(job.blocks):
            found = self.cache.load(job.blocks)
        wanted = self.cache.snapshots_for(job.blocks)
        cached_tokens = 0 if found is None else found.cached_tokens
        computed = Computed(self._executor.layout, len(job.prompt), cached_tokens, emit)
        first_token = await self._executor.prefill(
            job.prompt,
            computed.emit,
            cached=None if found is None else found.cache,
            snapshots=wanted,
            sampling=job.sampling,
            arrived_at=arrived_at,
        )
        async with self.cache.at_hand(job.blocks, to_keep=True):
            self.cache.keep(job.blocks, computed)
        return found, computed, first_token
