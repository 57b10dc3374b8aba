"""What decode computed of answers, on its way to a prefill engine that the next turn can resume from."""

from __future__ import annotations

import asyncio

from prfaas_lab.engine.prefix_cache import PrefixCache
from prfaas_lab.errors import EngineError
from prfaas_lab.kvcache import Transfer
from prfaas_lab.model.buffers import Produced

_LEAVE_TIMEOUT_S = 2.0
"""From an answer's last token until its row is free: less than a decode step, on a machine that keeps up."""
_REMEMBERED = 1024
"""Answers of which it is known that they will not come any more."""


class Answers:
    """Transfer-cache blocks: on the budget of the engine's pool from the end of a sequence until they are
    handed over. What finds no room there is not kept, and of more than `limit` the oldest are dropped:
    nobody asked for them."""

    def __init__(self, cache: PrefixCache, *, limit: int) -> None:
        self._cache, self._limit = cache, limit
        self._kept: dict[str, Transfer] = {}
        self._gone: dict[str, None] = {}
        """Nobody need wait for these: they came to nothing, found no room, or were dropped."""
        self._awaited: dict[str, asyncio.Event] = {}

    def keep(self, request_id: str, produced: Produced | None) -> None:
        """A sequence has left the batch, and this is what there is of it."""
        transfer = None
        if produced is not None:
            size_bytes = sum(segment.nbytes for _, segment in produced.segments)
            transfer = self._cache.stage(produced, size_bytes)
        if transfer is None:
            self._forget(request_id)
        else:
            self._kept[request_id] = transfer
        while len(self._kept) > self._limit:
            oldest = next(iter(self._kept))
            self._kept.pop(oldest).release()
            self._forget(oldest)
        if request_id in self._awaited:
            self._awaited[request_id].set()

    async def take(self, request_id: str) -> Transfer:
        """Hand over what is kept of an answer whose last token was given: to be released by the caller.
        Raises EngineError when there is nothing: at once where that is known, else after a short wait."""
        if request_id not in self._kept and request_id not in self._gone:
            left = self._awaited[request_id] = asyncio.Event()
            try:
                async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                    await left.wait()
            except TimeoutError:
                pass
            finally:
                del self._awaited[request_id]
        transfer = self._kept.pop(request_id, None)
        if transfer is None:
            raise EngineError("nothing is kept of this answer", where=request_id)
        return transfer

    def _forget(self, request_id: str) -> None:
        self._gone[request_id] = None
        if len(self._gone) > _REMEMBERED:
            del self._gone[next(iter(self._gone))]
