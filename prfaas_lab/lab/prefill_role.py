"""What the process of a prefill engine does with its orders."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from dataclasses import asdict
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter

from prfaas_lab.engine.executor import Emit
from prfaas_lab.engine.line import Withdrawn
from prfaas_lab.engine.prefill import PrefillEngine, PrefillJob, PrefillResult
from prfaas_lab.engine.stats import EngineStats
from prfaas_lab.lab.cache_news import news_of
from prfaas_lab.lab.cache_ports import CachePorts
from prfaas_lab.lab.egress import told
from prfaas_lab.lab.engine_parts import cache_of, end_of
from prfaas_lab.lab.executors import prefill_executor
from prfaas_lab.lab.orders import (
    HANDOVER_BYTES,
    EngineOrder,
    PrefillOrder,
    RedirectOrder,
    WithdrawOrder,
    handover_key,
)
from prfaas_lab.lab.stages import StageStream
from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.transport import KVReceiver, KVSender, Outgoing, Sent
from prfaas_lab.transport.errors import TransferWithdrawn
from prfaas_lab.transport.outgoing import Encoded

_ORDER = TypeAdapter(PrefillOrder)
_WITHDRAW_ORDER, _REDIRECT_ORDER = TypeAdapter(WithdrawOrder), TypeAdapter(RedirectOrder)


class PrefillRole:
    """Prefills, and sends each layer's chunk while the next computes."""

    def __init__(self, order: EngineOrder, model: Any, *, receiver: KVReceiver | None = None) -> None:
        """`receiver`: the one at this engine's address, where another role opens it."""
        executor = prefill_executor(order, model)
        self._layout, self._cache = executor.layout, cache_of(order, executor.layout, resumable=True)
        self._engine = PrefillEngine(
            executor, max_queue=order.settings.max_queue, clock=time.monotonic, cache=self._cache
        )
        self._order, self._sender = order, end_of(KVSender, order, executor.layout)
        self._receiver = receiver
        self._sending: dict[str, _Sending] = {}

    async def open(self, stack: AsyncExitStack) -> list[web.RouteDef]:
        if self._cache is not None:
            stack.callback(self._cache.close)
        stack.push_async_callback(self._sender.close)
        await stack.enter_async_context(self._engine)
        return [
            web.get("/state", self._state),
            web.post("/prefill", self._prefill),
            web.post("/prefill/withdraw", self._withdraw),
            web.post("/prefill/redirect", self._redirect),
            *await self._copies(stack),
        ]

    async def _copies(self, stack: AsyncExitStack) -> list[web.RouteDef]:
        if self._cache is None:
            return []
        receiver = self._receiver
        if receiver is None:
            receiver = end_of(KVReceiver, self._order, self._layout)
            await receiver.start(self._order.host, self._order.port)
            stack.push_async_callback(receiver.close)
        return CachePorts(self._cache, self._sender, receiver).routes

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    async def _state(self, http: web.Request) -> web.Response:
        return web.json_response({**asdict(self.stats), "paths": told(self._sender.paths())})

    async def _prefill(self, http: web.Request) -> web.StreamResponse:
        order = _ORDER.validate_json(await http.read())
        async with StageStream(http) as stages:
            outgoing = await self._sender.open(order.request_id, (order.decode_host, order.decode_port))
            try:
                blocks = order.blocks.prompt() if order.blocks else None
                prompt = order.prompt or range(order.prompt_tokens)
                job = PrefillJob(
                    request_id=order.request_id,
                    prompt=prompt,
                    sampling=order.sampling,
                    blocks=blocks,
                    submitted_at=order.submitted_at,
                    since=order.since,
                )
                result = await self._engine.run(job, self._beyond(order.held_tokens, outgoing.send))
                token = result.first_token.to_bytes(HANDOVER_BYTES, "little")
                outgoing.send(handover_key(), memoryview(token))
                await stages.say(
                    "prefilled",
                    started_at=result.started_at,
                    finished_at=result.finished_at,
                    computed_tokens=result.computed_tokens,
                    cached_tokens=result.cached_tokens,
                    decoded_tokens=result.decoded_tokens,
                )
                with self._in_transit(result):
                    if self._cache is not None:
                        await stages.say("cache", **news_of(self._cache.pool, in_full=order.tell_all))
                    sent = await self._deliver(order, outgoing, stages)
            except Withdrawn as withdrawn:
                outgoing.withdraw()
                await stages.say("withdrawn", since=withdrawn.since)
                return stages.response
            except BaseException:
                outgoing.cancel()
                raise
            await stages.say("sent", **asdict(sent))
        return stages.response

    async def _deliver(self, order: PrefillOrder, outgoing: Outgoing, stages: StageStream) -> Sent:
        """Wait until the receiver has it all: another one, if it is withdrawn before any of it was sent."""
        sending = self._sending[order.request_id] = _Sending(outgoing, order.held_tokens)
        try:
            while True:
                try:
                    return await sending.outgoing.finish()
                except TransferWithdrawn:
                    await stages.say("unsent")
                    await self._redirected(sending, await sending.redirect)  # or its caller goes away
        finally:
            del self._sending[order.request_id]

    async def _redirected(self, sending: _Sending, order: RedirectOrder) -> None:
        sending.outgoing = outgoing = await self._sender.open(
            order.request_id, (order.decode_host, order.decode_port)
        )
        for key, size_bytes, wire in sending.segments:
            if self._is_increment(key, order.held_tokens):
                outgoing.send_encoded(key, size_bytes, wire)
        sending.held_tokens, sending.segments = order.held_tokens, []

    async def _withdraw(self, http: web.Request) -> web.Response:
        request_id = _WITHDRAW_ORDER.validate_json(await http.read()).request_id
        self._engine.withdraw(request_id)
        sending = self._sending.get(request_id)
        if sending is not None and sending.outgoing.is_unsent and not sending.held_tokens:
            sending.redirect = asyncio.get_running_loop().create_future()
            sending.segments = sending.outgoing.withdraw()
        return web.json_response({})

    async def _redirect(self, http: web.Request) -> web.Response:
        order = _REDIRECT_ORDER.validate_json(await http.read())
        sending = self._sending.get(order.request_id)
        if sending is not None and not sending.redirect.done():
            sending.redirect.set_result(order)
        return web.json_response({})

    def _in_transit(self, result: PrefillResult) -> AbstractContextManager[object]:
        """Within, the tail of a prefill counts against the cache's budget: until its receiver has it."""
        size_bytes = sum(segment.nbytes for _, segment in result.tail)
        transfer = self._cache.stage(result.tail, size_bytes) if self._cache and size_bytes else None
        return transfer or nullcontext()

    def _beyond(self, held_tokens: int, send: Emit) -> Emit:
        """Sends only the increment: not the growing cache of tokens that the receiver holds already."""

        def emit(key: SegmentKey, segment: memoryview) -> None:
            if self._is_increment(key, held_tokens):
                send(key, segment)

        return emit

    def _is_increment(self, key: SegmentKey, held_tokens: int) -> bool:
        if key == handover_key() or self._layout.part(key).kind != "growing":
            return True
        return key.chunk * self._layout.chunk_tokens >= held_tokens


class _Sending:
    """A prompt's KVCache, all of it there, on its way."""

    def __init__(self, outgoing: Outgoing, held_tokens: int) -> None:
        self.outgoing, self.held_tokens = outgoing, held_tokens
        """And how much of it the receiver holds, so that it is here no more."""
        self.segments: list[Encoded] = []
        """That were withdrawn, and wait for `redirect`."""
        self.redirect: asyncio.Future[RedirectOrder] = asyncio.get_running_loop().create_future()
