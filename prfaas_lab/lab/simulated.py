"""Engines in this process, behind the same orders and stages as those in namespaces (lab.worker)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from prfaas_lab.engine.analytic import AnalyticDecode, AnalyticPrefill
from prfaas_lab.errors import EngineError
from prfaas_lab.fabric.fluid_network import FluidNetwork, Transfer
from prfaas_lab.lab.engines import EngineClient
from prfaas_lab.lab.orders import HANDOVER_BYTES, DecodeOrder, PacedModel, PrefillOrder

Arrival = tuple[int, float]
"""Bytes, and the loop time at which the last of them came."""


class Landings:
    """Where transfers end: what each request's decode engine waits for."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._open: dict[str, asyncio.Future[Arrival]] = {}

    def expect(self, request_id: str) -> asyncio.Future[Arrival]:
        arrival = self._open[request_id] = self._loop.create_future()
        return arrival

    def forget(self, request_id: str) -> None:
        self._open.pop(request_id, None)

    def arrived(self, request_id: str, size: int) -> None:
        arrival = self._open.get(request_id)
        if arrival is not None and not arrival.done():
            arrival.set_result((size, self._loop.time()))


class SimulatedPrefill:
    """A prefill engine, and its end of the transfers."""

    def __init__(
        self, name: str, engine: AnalyticPrefill, *, prefill_s: Callable[[float], float],
        model: PacedModel, chunk_tokens: int, network: FluidNetwork, landings: Landings,
    ) -> None:  # fmt: skip
        self.name = name
        self._engine, self._prefill_s, self._model = engine, prefill_s, model
        self._chunk_tokens, self._network, self._landings = chunk_tokens, network, landings

    async def state(self) -> dict[str, Any]:
        return asdict(self._engine.stats)

    async def stages(self, path: str, order: BaseModel) -> AsyncGenerator[dict[str, Any], None]:
        assert isinstance(order, PrefillOrder)
        request_id, tokens = order.request_id, order.prompt_tokens
        size = self._model.state_bytes + self._model.token_bytes * tokens + HANDOVER_BYTES
        loop = asyncio.get_running_loop()
        acknowledged: asyncio.Future[float] = loop.create_future()
        transfer: Transfer | None = None

        def begin(seconds: float) -> None:
            nonlocal transfer
            pieces = self._pieces(tokens, seconds, size)
            transfer = self._network.send(self.name, order.decode_host, pieces, arrived)

        def arrived(back_s: float) -> None:
            self._landings.arrived(request_id, size)
            if not acknowledged.done():
                acknowledged.set_result(loop.time() + back_s)

        try:
            started_at, finished_at = await self._engine.run(tokens, begin)
            yield {
                "stage": "prefilled",
                "started_at": started_at,
                "finished_at": finished_at,
                "computed_tokens": tokens,
            }
            last_ack_at = await acknowledged
        except BaseException:
            if transfer is not None:
                transfer.cancel()
            raise
        yield {
            "stage": "sent",
            "bytes": size,
            "first_byte_at": started_at,
            "last_ack_at": last_ack_at,
            "retried": 0,
        }

    def _pieces(self, tokens: int, seconds: float, size: int) -> list[tuple[float, int]]:
        """Layer by layer as they are computed: the growing part evenly, the state with the last chunk."""
        before = (tokens - 1) // self._chunk_tokens * self._chunk_tokens
        if not before:
            return [(seconds, size)]
        early_s = seconds * min(1.0, self._prefill_s(before) / self._prefill_s(tokens))
        early = self._model.token_bytes * before
        return [(early_s, early), (seconds - early_s, size - early)]


class SimulatedDecode:
    """A decode engine, and its end of the transfers."""

    def __init__(self, name: str, engine: AnalyticDecode, landings: Landings) -> None:
        self.name = name
        self._engine, self._landings = engine, landings

    async def state(self) -> dict[str, Any]:
        return asdict(self._engine.stats)

    async def stages(self, path: str, order: BaseModel) -> AsyncGenerator[dict[str, Any], None]:
        """All tokens after the first are told of at once, when the last has come: one by one, they
        would cost as much as all the rest."""
        assert isinstance(order, DecodeOrder)
        engine, request_id = self._engine, order.request_id
        try:
            engine.reserve()
        except EngineError as error:
            raise EngineError(error.what, where=self.name, remedy=error.remedy) from error
        sequence = None
        try:
            arrival = self._landings.expect(request_id)
            yield {"stage": "reserved"}
            size, last_byte_at = await arrival
            yield {"stage": "received", "bytes": size, "last_byte_at": last_byte_at}
            sequence = engine.join(order.output_tokens)
            yield {"stage": "restored", "at": await sequence.first}
            yield {"stage": "tokens", "tokens": (0,)}
            if order.output_tokens > 1:
                await sequence.last
                yield {"stage": "tokens", "tokens": (0,) * (order.output_tokens - 1)}
        finally:
            self._landings.forget(request_id)
            engine.release()
            if sequence is not None:
                engine.leave(sequence)


class SimulatedPair:
    """One instance that can do either, as the orders come; its scheduler gives it those of its role."""

    def __init__(self, prefill: EngineClient, decode: EngineClient) -> None:
        self._prefill, self._decode = prefill, decode

    def stages(self, path: str, order: BaseModel) -> AsyncGenerator[dict[str, Any], None]:
        return (self._decode if path == "/decode" else self._prefill).stages(path, order)

    async def state(self) -> dict[str, Any]:
        prefill, decode = await self._prefill.state(), await self._decode.state()
        return {key: prefill[key] + decode[key] for key in prefill}
