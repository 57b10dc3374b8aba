"""An engine's process: its executor, its end of the transport, and its control socket.

Control is aiohttp over a Unix socket (`curl --unix-socket ... http://engine/state` works). An order
is a POST whose answer is a stream of JSON lines, one per stage; a caller that goes away cancels its
order, and frees what it held. Stamps are CLOCK_MONOTONIC seconds, comparable between processes.
"""

from __future__ import annotations

import asyncio
import logging
import operator
import os
import signal
import time
from contextlib import AbstractContextManager, AsyncExitStack, aclosing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import uvloop
from aiohttp import web
from pydantic import TypeAdapter

from prfaas_lab.engine.answers import Answers
from prfaas_lab.engine.decode import DecodeEngine
from prfaas_lab.engine.executor import Emit
from prfaas_lab.engine.prefill import PrefillEngine, PrefillJob, PrefillResult
from prfaas_lab.engine.prefix_cache import PrefixCache
from prfaas_lab.engine.spill import SpillTier
from prfaas_lab.engine.stats import EngineStats
from prfaas_lab.lab.cache_news import news_of
from prfaas_lab.lab.cache_ports import CachePorts
from prfaas_lab.lab.egress import told
from prfaas_lab.lab.executors import batch_of, decode_executor, prefill_executor
from prfaas_lab.lab.orders import (
    HANDOVER_BYTES,
    DecodeOrder,
    EngineOrder,
    Order,
    PrefillOrder,
    VerifierOrder,
    VerifyOrder,
    handover_key,
)
from prfaas_lab.lab.stages import StageStream
from prfaas_lab.model.buffers import IncomingCache, Produced
from prfaas_lab.model.layout import CacheLayout, SegmentKey
from prfaas_lab.transport import KVReceiver, KVSender, Limits
from prfaas_lab.transport.codec import codec_for

_LARGEST_ORDER_BYTES = 1 << 26
_PREFILL_ORDER, _DECODE_ORDER = TypeAdapter(PrefillOrder), TypeAdapter(DecodeOrder)


class Role(Protocol):
    """What a process does with the orders it gets, for as long as its context is open."""

    async def open(self, stack: AsyncExitStack) -> list[web.RouteDef]: ...


def run(order: Order, model: Any) -> None:
    """Serve until SIGTERM. Returns on a clean stop; raises on anything else."""
    uvloop.run(_serve(order, model))


async def _serve(order: Order, model: Any) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.set_exception_handler(_die)
    async with AsyncExitStack() as stack:
        app = web.Application(client_max_size=_LARGEST_ORDER_BYTES)
        app.add_routes(await _role(order, model).open(stack))
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await _listen(runner, order.control_socket)
        await stop.wait()


def _die(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A fault that nobody awaits is a bug, and an engine that limps on would only hide it."""
    loop.default_exception_handler(context)
    logging.shutdown()
    os._exit(70)


async def _listen(runner: web.AppRunner, path: str) -> None:
    """Appear under the final name only once ready, so that whoever sees the socket can connect."""
    await web.UnixSite(runner, path + ".new").start()
    os.rename(path + ".new", path)


def _role(order: Order, model: Any) -> Role:
    if isinstance(order, VerifierOrder):
        return VerifierRole(order, model)
    if order.convertible:
        return PairRole(order, model)
    return PrefillRole(order, model) if order.role == "prefill" else DecodeRole(order, model)


class PairRole:
    """An engine that may change its role: it can do either, and gets the orders of one."""

    def __init__(self, order: EngineOrder, model: Any) -> None:
        self._decode = DecodeRole(order, model)
        self._prefill = PrefillRole(order, model, receiver=self._decode.receiver)

    async def open(self, stack: AsyncExitStack) -> list[web.RouteDef]:
        """Caches are copied from and to the pool to resume from; the other holds no more than blocks."""
        decode, prefill = await self._decode.open(stack), await self._prefill.open(stack)
        routes = {route.path: route for route in (*decode, *prefill)}
        return [*(routes | {"/state": web.get("/state", self._state)}).values()]

    async def _state(self, http: web.Request) -> web.Response:
        prefill, decode = asdict(self._prefill.stats), asdict(self._decode.stats)
        return web.json_response({key: prefill[key] + decode[key] for key in prefill})


class PrefillRole:
    """Prefills, and sends each layer's chunk while the next computes."""

    def __init__(self, order: EngineOrder, model: Any, *, receiver: KVReceiver | None = None) -> None:
        """`receiver`: the one at this engine's address, where another role opens it."""
        executor = prefill_executor(order, model)
        self._layout, self._cache = executor.layout, _cache_of(order, executor.layout, resumable=True)
        self._engine = PrefillEngine(
            executor, max_queue=order.settings.max_queue, clock=time.monotonic, cache=self._cache
        )
        self._order, self._sender = order, _sender(order, executor.layout)
        self._receiver = receiver

    async def open(self, stack: AsyncExitStack) -> list[web.RouteDef]:
        if self._cache is not None:
            stack.callback(self._cache.close)
        stack.push_async_callback(self._sender.close)
        await stack.enter_async_context(self._engine)
        return [
            web.get("/state", self._state),
            web.post("/prefill", self._prefill),
            *await self._copies(stack),
        ]

    async def _copies(self, stack: AsyncExitStack) -> list[web.RouteDef]:
        if self._cache is None:
            return []
        receiver = self._receiver
        if receiver is None:
            receiver = _receiver(self._order, self._layout)
            await receiver.start(self._order.host, self._order.port)
            stack.push_async_callback(receiver.close)
        return CachePorts(self._cache, self._sender, receiver).routes

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    async def _state(self, http: web.Request) -> web.Response:
        return web.json_response({**asdict(self.stats), "paths": told(self._sender.paths())})

    async def _prefill(self, http: web.Request) -> web.StreamResponse:
        order = _PREFILL_ORDER.validate_json(await http.read())
        async with StageStream(http) as stages:
            outgoing = await self._sender.open(order.request_id, (order.decode_host, order.decode_port))
            try:
                blocks = order.blocks.prompt() if order.blocks else None
                prompt = order.prompt or range(order.prompt_tokens)
                job = PrefillJob(
                    request_id=order.request_id, prompt=prompt, sampling=order.sampling, blocks=blocks
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
                    sent = await outgoing.finish()
            except BaseException:
                outgoing.cancel()
                raise
            await stages.say("sent", **asdict(sent))
        return stages.response

    def _in_transit(self, result: PrefillResult) -> AbstractContextManager[object]:
        """Within, the tail of a prefill counts against the cache's budget: until its receiver has it."""
        size_bytes = sum(segment.nbytes for _, segment in result.tail)
        transfer = self._cache.stage(result.tail, size_bytes) if self._cache and size_bytes else None
        return transfer or nullcontext()

    def _beyond(self, held_tokens: int, send: Emit) -> Emit:
        """Sends only the increment: not the growing cache of tokens that the receiver holds already."""

        def emit(key: SegmentKey, segment: memoryview) -> None:
            growing = self._layout.part(key).kind == "growing"
            if not growing or key.chunk * self._layout.chunk_tokens >= held_tokens:
                send(key, segment)

        return emit


class DecodeRole:
    """Receives KVCache into place, and decodes all its sequences in one batch."""

    def __init__(self, order: EngineOrder, model: Any) -> None:
        executor = decode_executor(order, model)
        self._order, self._cache = order, _cache_of(order, executor.layout, resumable=False)
        self._answers = None
        if self._cache is not None and order.cache is not None and order.cache.keeps_answers:
            self._answers = Answers(self._cache, limit=2 * batch_of(order))
        self._engine = DecodeEngine(
            executor,
            max_batch=batch_of(order),
            max_queue=order.settings.max_queue,
            clock=time.monotonic,
        )
        self._layout, self.receiver = executor.layout, _receiver(order, executor.layout)

    async def open(self, stack: AsyncExitStack) -> list[web.RouteDef]:
        if self._cache is not None:
            stack.callback(self._cache.close)
        await stack.enter_async_context(self._engine)
        await self.receiver.start(self._order.host, self._order.port)
        stack.push_async_callback(self.receiver.close)
        routes = [web.get("/state", self._state), web.post("/decode", self._decode)]
        if self._cache is not None:
            sender = _sender(self._order, self._layout)
            stack.push_async_callback(sender.close)
            routes += CachePorts(self._cache, sender, self.receiver, self._answers).routes
        return routes

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    async def _state(self, http: web.Request) -> web.Response:
        return web.json_response(asdict(self.stats))

    async def _decode(self, http: web.Request) -> web.StreamResponse:
        order = _DECODE_ORDER.validate_json(await http.read())
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


class VerifierRole:
    """Generates in one process what the engines generated together, and compares."""

    def __init__(self, order: VerifierOrder, model: Any) -> None:
        self._chunk_tokens, self._model = order.chunk_tokens, model

    async def open(self, stack: AsyncExitStack) -> list[web.RouteDef]:
        return [web.post("/verify", self._verify)]

    async def _verify(self, http: web.Request) -> web.Response:
        from prfaas_lab.model.torch_reference import explain, generate

        order = VerifyOrder.model_validate_json(await http.read())
        reference = generate(self._model, order.prompt, len(order.tokens), self._chunk_tokens)
        outcome, detail = explain(reference, order.tokens)
        equal_tokens = sum(map(operator.eq, reference.tokens, order.tokens))
        return web.json_response({"outcome": outcome, "detail": detail, "equal_tokens": equal_tokens})


def _cache_of(order: EngineOrder, layout: CacheLayout, *, resumable: bool) -> PrefixCache | None:
    share = order.cache
    if share is None:
        return None
    spill = None
    if share.disk_bytes and share.disk_path:
        path = Path(share.disk_path) / order.name / ("prefill" if resumable else "decode")
        spill = SpillTier(path, share.disk_bytes)
    return PrefixCache.of(
        layout,
        share.memory_bytes,
        spill=spill,
        resumable=resumable,
        snapshots=share.settings.snapshots,
        snapshot_every=share.settings.snapshot_every,
        eviction=share.settings.eviction,
    )


def _sender(order: EngineOrder, layout: CacheLayout) -> KVSender:
    return KVSender(
        key=bytes.fromhex(order.key_hex),
        fingerprint=layout.fingerprint,
        settings=Limits.of(order.transport, order.path),
        codec=codec_for(order.transport.compression, layout),
        clock=time.monotonic,
    )


def _receiver(order: EngineOrder, layout: CacheLayout) -> KVReceiver:
    return KVReceiver(
        key=bytes.fromhex(order.key_hex),
        fingerprint=layout.fingerprint,
        settings=Limits.of(order.transport, order.path),
        codec=codec_for(order.transport.compression, layout),
        clock=time.monotonic,
    )
