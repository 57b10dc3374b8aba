"""Requests on their way through the deployment, and their outputs as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prfaas_lab.api.output import Output, Piece
from prfaas_lab.lab.service import Service
from prfaas_lab.workload.request import Request

CLIENT_LEFT = "the client left"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, and what makes its text."""

    request: Request
    output: Output


@dataclass(frozen=True, slots=True)
class Ended:
    """An output is complete, or it failed."""

    failed: bool


Item = tuple[int, Piece | Ended]
"""The number of an ask, and what came of it."""


class Generation:
    """All outputs of one call. Pieces wait here for a slow client: as many as tokens were asked for."""

    def __init__(self, service: Service, asks: Sequence[Ask]) -> None:
        self._service, self._asks = service, asks
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._open = len(asks)

    async def next(self) -> Item | None:
        """What comes next; None when every output has ended."""
        if not self._open:
            return None
        item = await self._items.get()
        self._open -= isinstance(item[1], Ended)
        return item

    async def serve(self, number: int) -> None:
        """One output, into the queue."""
        ask = self._asks[number]
        tokens = await self._service.serve(ask.request, self._taker(number, ask.output))
        self._items.put_nowait((number, Ended(failed=tokens is None)))

    def _taker(self, number: int, output: Output) -> Callable[[int], bool]:
        def take(token: int) -> bool:
            piece = output.take(token)
            self._items.put_nowait((number, piece))
            return piece.finish == "stop"

        return take


@asynccontextmanager
async def generating(service: Service, asks: Sequence[Ask]) -> AsyncIterator[Generation]:
    """Serve them all; whoever leaves the context, however early, gives up what is still in flight."""
    generation, fault = Generation(service, asks), None
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(generation.serve(number)) for number in range(len(asks))]
        try:
            yield generation
        except Exception as error:  # a task group would wrap it
            fault = error
        finally:
            for task in tasks:
                task.cancel(CLIENT_LEFT)
    if fault is not None:
        raise fault
