"""What the process of a decode engine does with its orders."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict
from functools import partial
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter

from prfaas_lab.engine.answers import Answers
from prfaas_lab.engine.decode import DecodeEngine
from prfaas_lab.engine.stats import EngineStats
from prfaas_lab.lab.cache_news import news_of
from prfaas_lab.lab.cache_ports import CachePorts
from prfaas_lab.lab.engine_parts import cache_of, end_of
from prfaas_lab.lab.executors import batch_of, decode_executor
from prfaas_lab.lab.orders import HANDOVER_BYTES, DecodeOrder, EngineOrder, handover_key
from prfaas_lab.lab.stages import StageStream
from prfaas_lab.model.buffers import IncomingCache, Produced
from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.transport import KVReceiver, KVSender

_ORDER = TypeAdapter(DecodeOrder)


class DecodeRole:
    """Receives KVCache into place, and decodes all its sequences in one batch."""

    def __init__(self, order: EngineOrder, model: Any) -> None:
        executor = decode_executor(order, model)
        self._order, self._cache = order, cache_of(order, executor.layout, resumable=False)
        self._answers = None
        if self._cache is not None and order.cache is not None and order.cache.keeps_answers:
            self._answers = Answers(self._cache, limit=2 * batch_of(order))
        self._engine = DecodeEngine(
            executor,
            max_batch=batch_of(order),
            max_queue=order.settings.max_queue,
            clock=time.monotonic,
        )
        self._layout, self.receiver = executor.layout, end_of(KVReceiver, order, executor.layout)

    async def open(self, stack: AsyncExitStack) -> list[web.RouteDef]:
        if self._cache is not None:
            stack.callback(self._cache.close)
        await stack.enter_async_context(self._engine)
        await self.receiver.start(self._order.host, self._order.port)
        stack.push_async_callback(self.receiver.close)
        routes = [web.get("/state", self._state), web.post("/decode", self._decode)]
        if self._cache is not None:
            sender = end_of(KVSender, self._order, self._layout)
            stack.push_async_callback(sender.close)
            routes += CachePorts(self._cache, sender, self.receiver, self._answers).routes
        return routes

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    async def _state(self, http: web.Request) -> web.Response:
        return web.json_response(asdict(self.stats))

    async def _decode(self, http: web.Request) -> web.StreamResponse:
        order = _ORDER.validate_json(await http.read())
        async with StageStream(http) as stages:
            cache = self._engine.reserve(
                order.request_id, order.prompt_tokens, order.output_tokens, order.sampling
            )
            try:
                blocks = order.blocks.prompt() if self._cache and order.blocks else None
                held_tokens = 0
                if self._cache and blocks:
                    async with self._cache.at_hand(blocks):
                        held_tokens = self._cache.fill(blocks, cache)
                landing = _Landing(cache)
                incoming = self.receiver.expect(order.request_id, landing.destination)
                try:
                    await stages.say("reserved", held_tokens=held_tokens)
                    received = await incoming.done()
                finally:
                    incoming.cancel()
                first_token = landing.settle()
                await stages.say("received", **asdict(received))
                if self._cache and blocks:
                    async with self._cache.at_hand(blocks, to_keep=True):
                        self._cache.keep_received(blocks, cache)
                    await stages.say("cache", **news_of(self._cache.pool, in_full=order.tell_all))
                await self._generate(order, first_token, stages)
            finally:
                self._engine.release(order.request_id)
        return stages.response

    async def _generate(self, order: DecodeOrder, first_token: int, stages: StageStream) -> None:
        restored_at: list[float] = []
        generated = self._engine.generate(
            order.request_id,
            first_token,
            on_restored=lambda: restored_at.append(time.monotonic()),
            on_left=partial(self._keep, order.request_id),
        )
        async with aclosing(generated) as given:
            async for tokens in given:
                if restored_at:
                    await stages.say("restored", at=restored_at.pop())
                await stages.say("tokens", tokens=tokens)

    def _keep(self, request_id: str, produced: Produced | None) -> None:
        if self._answers is not None:
            self._answers.keep(request_id, produced)


class _Landing:
    """Where one transfer's segments go: the request's cache, and the first token beside it."""

    def __init__(self, cache: IncomingCache) -> None:
        self._cache, self._token = cache, bytearray(HANDOVER_BYTES)

    def destination(self, key: SegmentKey, nbytes: int) -> memoryview:
        """Raises ValueError for a segment that has no place here."""
        if key != handover_key():
            return self._cache.destination(key, nbytes)
        if nbytes != HANDOVER_BYTES:
            raise ValueError(f"a first token of {nbytes} bytes")
        return memoryview(self._token)

    def settle(self) -> int:
        """Once the transfer is done and checked: the first token."""
        self._cache.all_arrived()
        return int.from_bytes(self._token, "little")
