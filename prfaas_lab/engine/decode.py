"""The decode engine: reserved memory for what arrives, then continuous batching."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from prfaas_lab.engine.executor import DecodeExecutor
from prfaas_lab.engine.stats import BusyMeter, EngineStats
from prfaas_lab.errors import EngineError
from prfaas_lab.model.buffers import IncomingCache, Produced
from prfaas_lab.workload.request import GREEDY, Sampling


def _ignore(_: Produced | None) -> None:
    """What was computed is not wanted."""


@dataclass(slots=True, kw_only=True)
class _Sequence:
    """A request from its reservation to its last token."""

    request_id: str
    output_tokens: int
    reserved_bytes: int
    incoming: IncomingCache | None
    sampling: Sampling
    report_tokens: int
    first_token: int = -1
    produced: int = 0
    on_left: Callable[[Produced | None], None] = _ignore
    gone: bool = False
    unsaid: list[int] = field(default_factory=list)
    ready: asyncio.Queue[tuple[int, ...] | Exception] = field(init=False)

    def __post_init__(self) -> None:
        self.ready = asyncio.Queue(self.output_tokens + 1)

    @property
    def finished(self) -> bool:
        return self.gone or self.produced >= self.output_tokens

    def give(self, tokens: Sequence[int]) -> None:
        first = self.produced == 0
        for token in tokens:
            self.produced += 1
            self.unsaid.append(token)
            if token in self.sampling.stop_ids:
                self.output_tokens = self.produced
                break
        if first or self.finished or len(self.unsaid) >= self.report_tokens:
            self.ready.put_nowait(tuple(self.unsaid))
            self.unsaid.clear()

    def fail(self, reason: Exception) -> None:
        if not self.finished:
            self.gone = True
            self.ready.put_nowait(reason)


class DecodeEngine:
    """At most `max_batch` sequences decode together; at most `max_queue` more hold a reservation.

    Open and close it with `async with`. Cancel a request by closing its `generate` (iterate under
    `contextlib.aclosing`), or by `release` when it has not begun.
    """

    def __init__(
        self,
        executor: DecodeExecutor,
        *,
        max_batch: int,
        clock: Callable[[], float],
        max_queue: int = 1024,
        max_reserved_bytes: int = 2 * 2**30,
    ) -> None:
        self._executor, self._max_batch, self._max_queue = executor, max_batch, max_queue
        self._max_reserved_bytes = max_reserved_bytes
        self._reserved: dict[str, _Sequence] = {}
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[str, _Sequence] = {}
        self._wake = asyncio.Event()
        self._busy = BusyMeter(clock)
        self._tokens = 0
        self._closed = True
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> DecodeEngine:
        await self._group.__aenter__()
        self._closed = False
        self._group.create_task(self._serve(), name="decode")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._wake.set()
        if kind is not asyncio.CancelledError:  # a group would wrap the caller's error in its own
            kind = error = trace = None
        try:
            await self._group.__aexit__(kind, error, trace)
        finally:
            await self._executor.close()

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            queued=len(self._waiting),
            running=sum(not sequence.finished for sequence in self._running.values()),
            busy_s=self._busy.total_s,
            tokens_total=self._tokens,
        )

    @property
    def reserved_bytes(self) -> int:
        """KVCache memory promised to requests that have not ended."""
        return sum(sequence.reserved_bytes for sequence in self._reserved.values())

    def reserve(
        self, request_id: str, prompt_tokens: int, output_tokens: int, sampling: Sampling = GREEDY
    ) -> IncomingCache:
        """Memory for a request's KVCache, held until its `generate` ends or `release`.

        Raises `EngineError` when the engine is closed or full, or the request is known already.
        """
        assert output_tokens > 0, "a request asks for at least one token"
        size = self._executor.layout.request_bytes(prompt_tokens)
        problem = self._problem_with(request_id, size)
        if problem:
            raise EngineError(problem, where=request_id, remedy="send fewer or shorter requests")
        incoming = IncomingCache(self._executor.layout, prompt_tokens)
        self._reserved[request_id] = _Sequence(
            request_id=request_id,
            output_tokens=output_tokens,
            reserved_bytes=size,
            incoming=incoming,
            sampling=sampling,
            report_tokens=self._executor.report_tokens,
        )
        return incoming

    def release(self, request_id: str) -> None:
        """Give up a reservation whose `generate` will not be called; unknown ids are ignored."""
        sequence = self._reserved.pop(request_id, None)
        if sequence is not None:
            sequence.fail(EngineError("the request was released", where=request_id))
            self._wake.set()

    async def generate(
        self,
        request_id: str,
        first_token: int,
        on_restored: Callable[[], None] = lambda: None,
        on_left: Callable[[Produced | None], None] = _ignore,
    ) -> AsyncGenerator[tuple[int, ...], None]:
        """The request's tokens as they come: the first as soon as its cache is restored in the batch, then
        one a step (or as many at a time as the executor reports), until there are enough or one of its
        stop ids came.

        `on_left` gets what was computed of it, soon after the last token: when its row is free.

        Raises `EngineError` for an unknown request, an incomplete cache, a failed step or a closed
        engine. However it ends, the request's row and memory are free afterwards.
        """
        sequence = self._complete(request_id)
        sequence.first_token, sequence.on_left = first_token, on_left
        try:
            self._waiting.append(sequence)
            self._wake.set()
            taken = 0
            while taken < sequence.output_tokens:
                tokens = await sequence.ready.get()
                if isinstance(tokens, Exception):
                    raise tokens
                if taken == 0:
                    on_restored()
                taken += len(tokens)
                self._tokens += len(tokens)
                yield tokens
        finally:
            sequence.gone = True
            self._reserved.pop(request_id, None)
            self._wake.set()

    def _problem_with(self, request_id: str, size: int) -> str:
        if self._closed:
            return "the decode engine is closed"
        if request_id in self._reserved or request_id in self._running:
            return "this request has a reservation already"
        if len(self._reserved) >= self._max_batch + self._max_queue:
            return f"the decode engine has {len(self._reserved)} requests"
        if self.reserved_bytes + size > self._max_reserved_bytes:
            return (
                f"{size} bytes do not fit: {self.reserved_bytes} of {self._max_reserved_bytes} are reserved"
            )
        return ""

    def _complete(self, request_id: str) -> _Sequence:
        sequence = self._reserved.get(request_id)
        if self._closed or sequence is None or sequence.incoming is None:
            raise EngineError("no such reservation", where=request_id)
        if sequence in self._waiting:
            raise EngineError("the request generates already", where=request_id)
        if not sequence.incoming.complete:
            missing = sequence.incoming.missing()
            raise EngineError(
                f"the KVCache lacks {len(missing)} segments, first {missing[0]}", where=request_id
            )
        return sequence

    async def _serve(self) -> None:
        try:
            while not self._closed:
                self._wake.clear()
                await self._leave_finished()
                await self._join_waiting()
                if self._running:
                    await self._step()
                else:
                    await self._wake.wait()
        finally:
            for sequence in self._reserved.values():
                sequence.fail(EngineError("the decode engine was closed", where=sequence.request_id))

    async def _leave_finished(self) -> None:
        for request_id in [key for key, sequence in self._running.items() if sequence.finished]:
            produced = await self._executor.leave(request_id)
            self._running.pop(request_id).on_left(produced)

    async def _join_waiting(self) -> None:
        while self._waiting and len(self._running) < self._max_batch:
            sequence = self._waiting.popleft()
            if not sequence.gone:
                await self._join(sequence)

    async def _join(self, sequence: _Sequence) -> None:
        assert sequence.incoming is not None, "joined twice"
        incoming, sequence.incoming = sequence.incoming, None
        self._running[sequence.request_id] = sequence
        try:
            with self._busy:
                await self._executor.join(
                    sequence.request_id, incoming, sequence.first_token, sequence.sampling
                )
        except Exception as error:
            del self._running[sequence.request_id]
            sequence.fail(_failed("restoring the KVCache", sequence, error))
            return
        sequence.give((sequence.first_token,))

    async def _step(self) -> None:
        left = [s.output_tokens - s.produced for s in self._running.values() if not s.finished]
        if not left:
            return
        try:
            with self._busy:
                given = await self._executor.step(min(left), self._wake)
        except Exception as error:
            for sequence in self._running.values():
                sequence.fail(_failed("a decode step", sequence, error))
            self._running.clear()
            await self._executor.reset()
            return
        for request_id, tokens in given.items():
            if not self._running[request_id].finished:
                self._running[request_id].give(tokens)


def _failed(what: str, sequence: _Sequence, cause: Exception) -> EngineError:
    error = EngineError(f"{what} failed: {cause!r}", where=sequence.request_id)
    error.__cause__ = cause
    return error
