"""A long order's progress as JSON lines: the engine's end writes them, the controller's end reads.

A line is `{"stage": name, ...}`; the last is `{"stage": "end"}` or `{"stage": "failed", "reason": ...}`.
A stream that ends without either means that the engine died.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import web

from prfaas_lab.errors import EngineError, LabError


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
