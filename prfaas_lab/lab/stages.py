"""A long order's progress as JSON lines: the engine's end writes them, the controller's end reads.

A line is `{"stage": name, ...}`; the last is `{"stage": "end"}` or `{"stage": "failed", "reason": ...}`.
A stream that ends without either means that the engine died.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import web

from prfaas_lab.errors import EngineError, LabError
from prfaas_lab.lab.engines import Ended, OpenOrder, Tell
from prfaas_lab.lab.orders import RedirectOrder


class StageStream:
    """The engine's end. Within the context, `say` sends a stage; leaving it ends the stream, saying
    how: a LabError is told to the caller, anything else is a bug and also goes to the log."""

    def __init__(self, http: web.Request) -> None:
        self._http = http
        self.response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})

    async def say(self, stage: str, **facts: Any) -> None:
        await self.response.write(json.dumps({"stage": stage, **facts}).encode() + b"\n")

    async def __aenter__(self) -> StageStream:
        await self.response.prepare(self._http)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            await self.say("end")
        elif isinstance(error, LabError):
            await self.say("failed", reason=str(error))
        elif isinstance(error, Exception):
            await self.say("failed", reason=f"a bug in the engine: {error!r} (see its log)")
            return False
        else:
            return False
        await self.response.write_eof()
        return True


async def read_stages(response: aiohttp.ClientResponse, engine: str) -> AsyncIterator[dict[str, Any]]:
    """The controller's end: every stage until the end. Raises EngineError when the order failed or
    the engine went away."""
    try:
        async for line in response.content:
            stage: dict[str, Any] = json.loads(line)
            if stage["stage"] == "end":
                return
            if stage["stage"] == "failed":
                raise EngineError(stage["reason"], where=engine)
            yield stage
    except aiohttp.ClientError as error:
        raise EngineError("went away in the middle of an order", where=engine) from error
    raise EngineError("went away in the middle of an order", where=engine)


Ask = Callable[[RedirectOrder | None], Awaitable[object]]
_Start = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Followed:
    """Orders whose stages come over a stream, told on to whoever gave them. Close it: that gives up those
    that still go on."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(
        self, stages: AsyncGenerator[dict[str, Any], None], tell: Tell, ended: Ended, ask: Ask
    ) -> OpenOrder:
        """See EngineClient.begin. `ask` asks for the order back, or redirects it."""
        return _Followed(self._start, stages, tell, ended, ask)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Followed:
    """One of them. Whatever goes wrong is told, so that its task never fails."""

    def __init__(
        self, start: _Start, stages: AsyncGenerator[dict[str, Any], None], tell: Tell, ended: Ended,
        ask: Ask,
    ) -> None:  # fmt: skip
        self._start, self._stages, self._tell, self._ended = start, stages, tell, ended
        self._ask = ask
        self._given_up = False
        self._following = start(self._follow())
        self._asking: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        self._given_up = True
        self._following.cancel()

    def withdraw(self) -> None:
        if self._asking is None or self._asking.done():
            self._asking = self._start(self._withdraw())

    def redirect(self, order: RedirectOrder) -> None:
        self._start(self._redirect(order))

    async def _withdraw(self) -> None:
        with suppress(EngineError):  # then it just goes on, or ends as its engine did
            await self._ask(None)

    async def _redirect(self, order: RedirectOrder) -> None:
        try:
            await self._ask(order)
        except EngineError as error:
            self._end(error)

    async def _follow(self) -> None:
        try:
            async with aclosing(self._stages):
                async for stage in self._stages:
                    if self._given_up:  # cancelled by what it told; that is felt only where it waits
                        return
                    self._tell(stage)
        except Exception as error:
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        if not self._given_up:
            self._ended(error)
