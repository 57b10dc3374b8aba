"""What decode computed of answers, on its way to a prefill engine that the next turn can resume from."""

from __future__ import annotations

import asyncio

from prfaas_lab.engine.prefix_cache import PrefixCache
from prfaas_lab.errors import EngineError
from prfaas_lab.kvcache import Transfer
from prfaas_lab.model.buffers import Produced

_LEAVE_TIMEOUT_S = 2.0
"""From an answer's last token until its row is free: less than a decode step, on a machine that keeps up."""


class Answers:
    """Transfer-cache blocks: on the budget of the engine's pool from the end of a sequence until they are
    handed over. What finds no room there is not kept, and of more than `limit` the oldest are dropped:
    nobody asked for them."""

    def __init__(self, cache: PrefixCache, *, limit: int) -> None:
        self._cache, self._limit = cache, limit
        self._kept: dict[str, Transfer | None] = {}
        """None: there was no room for it, so that nobody need wait for it."""
        self._awaited: dict[str, asyncio.Event] = {}

    def keep(self, request_id: str, produced: Produced | None) -> None:
        """A sequence has left the batch, and this is what there is of it."""
        if produced is not None:
            size_bytes = sum(segment.nbytes for _, segment in produced.segments)
            self._kept[request_id] = self._cache.stage(produced, size_bytes)
        while len(self._kept) > self._limit:
            oldest = self._kept.pop(next(iter(self._kept)))
            if oldest is not None:
                oldest.release()
        if request_id in self._awaited:
            self._awaited[request_id].set()

    async def take(self, request_id: str) -> Transfer:
        """Hand over what is kept of an answer whose last token was given: to be released by the caller.
        Raises EngineError when there is nothing, also after a short wait."""
        if request_id not in self._kept:
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
