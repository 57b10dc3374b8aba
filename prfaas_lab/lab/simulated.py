"""Engines in this process, behind the same orders and stages as those in namespaces (lab.worker)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from prfaas_lab.engine.analytic import AnalyticDecode, AnalyticPrefill, nothing
from prfaas_lab.errors import EngineError
from prfaas_lab.fabric.fluid_network import FluidNetwork, Transfer
from prfaas_lab.lab.engines import EngineClient
from prfaas_lab.lab.orders import HANDOVER_BYTES, DecodeOrder, PacedModel, PrefillOrder
from prfaas_lab.lab.simulated_cache import SimulatedCache

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
        self, name: str, engine: AnalyticPrefill, *, prefill_s: Callable[[float, float], float],
        model: PacedModel, chunk_tokens: int, network: FluidNetwork, landings: Landings,
        cache: SimulatedCache | None = None,
    ) -> None:  # fmt: skip
        self.name, self._cache = name, cache
        self._engine, self._prefill_s, self._model = engine, prefill_s, model
        self._chunk_tokens, self._network, self._landings = chunk_tokens, network, landings

    async def state(self) -> dict[str, Any]:
        return asdict(self._engine.stats)

    def stages(self, path: str, order: BaseModel) -> AsyncGenerator[dict[str, Any], None]:
        if isinstance(order, PrefillOrder):
            return self._prefill(order)
        assert self._cache is not None, "only caches are copied"
        return self._cache.stages(order)

    async def _prefill(self, order: PrefillOrder) -> AsyncGenerator[dict[str, Any], None]:
        request_id, tokens, held_tokens = order.request_id, order.prompt_tokens, order.held_tokens
        size = self._model.state_bytes + self._model.token_bytes * (tokens - held_tokens) + HANDOVER_BYTES
        kept = None
        if self._cache is not None and order.blocks is not None:
            kept = self._cache.prefilling(order.blocks, tell_all=order.tell_all)
        loop = asyncio.get_running_loop()
        acknowledged: asyncio.Future[float] = loop.create_future()
        transfer: Transfer | None = None

        def begin(seconds: float) -> None:
            nonlocal transfer
            cached_tokens = kept.cached_tokens if kept else 0
            pieces = self._pieces(tokens, seconds, size, cached_tokens, held_tokens)
            transfer = self._network.send(self.name, order.decode_host, pieces, arrived)

        def arrived(back_s: float) -> None:
            self._landings.arrived(request_id, size)
            if not acknowledged.done():
                acknowledged.set_result(loop.time() + back_s)

        try:
            started_at, finished_at = await self._engine.run(tokens, begin, kept.look if kept else nothing)
            news = kept.keep() if kept else None  # before the next in line looks
            cached_tokens = kept.cached_tokens if kept else 0
            yield {
                "stage": "prefilled",
                "started_at": started_at,
                "finished_at": finished_at,
                "computed_tokens": tokens - cached_tokens,
                "cached_tokens": cached_tokens,
            }
            if news is not None:
                yield news
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

    def _pieces(
        self, tokens: int, seconds: float, size: int, cached_tokens: int, held_tokens: int
    ) -> list[tuple[float, int]]:
        """Layer by layer as they are computed: what is cached at once, the rest of the growing part evenly,
        the state with the last chunk; and nothing of what the receiver holds."""
        before = (tokens - 1) // self._chunk_tokens * self._chunk_tokens
        first = max(cached_tokens, held_tokens)
        if not before or (before == cached_tokens == held_tokens):
            return [(seconds, size)]
        whole_s, share = self._prefill_s(tokens, cached_tokens), self._model.token_bytes

        def done_s(boundary: int) -> float:
            if boundary == cached_tokens:
                return 0.0
            return seconds * min(1.0, self._prefill_s(boundary, cached_tokens) / whole_s)

        ready, early = share * max(0, cached_tokens - held_tokens), share * (before - first)
        made = [
            (0.0, ready), (done_s(first), 0), (done_s(before) - done_s(first), early),
            (seconds - done_s(before), size - ready - early),
        ]  # fmt: skip
        return [(piece_s, piece) for piece_s, piece in made if piece_s or piece]


class SimulatedDecode:
    """A decode engine, and its end of the transfers."""

    def __init__(
        self, name: str, engine: AnalyticDecode, landings: Landings, cache: SimulatedCache | None = None
    ) -> None:
        self.name, self._cache = name, cache
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
            cache = self._cache if order.blocks else None
            held_tokens = cache.find_held(order.blocks) if cache and order.blocks else 0
            yield {"stage": "reserved", "held_tokens": held_tokens}
            size, last_byte_at = await arrival
            yield {"stage": "received", "bytes": size, "last_byte_at": last_byte_at}
            if cache and order.blocks:
                yield cache.keep_received(order.blocks, tell_all=order.tell_all)
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
