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
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any, Protocol

import uvloop
from aiohttp import web

from prfaas_lab.lab.decode_role import DecodeRole
from prfaas_lab.lab.orders import EngineOrder, Order, VerifierOrder, VerifyOrder
from prfaas_lab.lab.prefill_role import PrefillRole

_LARGEST_ORDER_BYTES = 1 << 26


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
