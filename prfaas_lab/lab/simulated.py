"""Engines in this process, behind the same orders and stages as those in namespaces (lab.worker).

An order is a small object that its engine, its transfer and its client call as things happen: no task,
no queue, no future, so that a request costs its events and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict, replace
from typing import Any

from prfaas_lab.engine.analytic import AnalyticDecode, AnalyticPrefill, Job, Sequence
from prfaas_lab.engine.cores import Cores
from prfaas_lab.errors import EngineError
from prfaas_lab.fabric.fluid_network import FluidNetwork
from prfaas_lab.fabric.fluid_transfer import Transfer
from prfaas_lab.lab.engines import Ended, EngineClient, OpenOrder, Tell
from prfaas_lab.lab.orders import (
    HANDOVER_BYTES,
    DecodeOrder,
    EngineTask,
    PacedModel,
    PrefillOrder,
    RedirectOrder,
)
from prfaas_lab.lab.simulated_cache import SimulatedCache
from prfaas_lab.lab.simulated_sharing import PartedTransfer


class Landings:
    """Where transfers end: what each request's decode engine waits for, until it is there."""

    def __init__(self) -> None:
        self._open: dict[str, _Decoding] = {}

    def expect(self, request_id: str, decoding: _Decoding) -> None:
        self._open[request_id] = decoding

    def forget(self, request_id: str) -> None:
        self._open.pop(request_id, None)

    def arrived(self, request_id: str, size: int, at: float) -> None:
        """The last byte came, at a loop time."""
        decoding = self._open.pop(request_id, None)
        if decoding is not None:
            decoding.landed(size, at)


class SimulatedPrefill:
    """A prefill engine, and its end of the transfers."""

    def __init__(
        self, name: str, engine: AnalyticPrefill, *, prefill_s: Callable[[float, float], float],
        model: PacedModel, chunk_tokens: int, network: FluidNetwork, landings: Landings,
        cache: SimulatedCache | None = None, order_s: float = 0.0, connect_s: float = 0.0,
        clock: Cores | None = None,
    ) -> None:  # fmt: skip
        """`clock`: the engine's, when it shares cores; then an order takes `order_s` to get to it, and the
        first for a decode engine `connect_s` and some round trips more."""
        self.name, self.engine, self.cache = name, engine, cache
        self.landings, self._order_s, self._connect_s = landings, order_s, connect_s
        self._network, self._clock = network, clock
        self._prefill_s, self._model, self._chunk_tokens = prefill_s, model, chunk_tokens
        self._connected_at: dict[str, float] = {}

    async def state(self) -> dict[str, Any]:
        return asdict(self.engine.stats)

    def begin(self, path: str, order: EngineTask, tell: Tell, ended: Ended) -> OpenOrder:
        assert isinstance(order, PrefillOrder)
        return _Prefilling(self, order, tell, ended)

    def stages(self, path: str, order: EngineTask) -> AsyncGenerator[dict[str, Any], None]:
        assert self.cache is not None, "only caches are copied"
        return self.cache.stages(order)

    def comes_at(self, order: PrefillOrder) -> float | None:
        """Loop time at which an order joins the engine's line; None, at once, where engines share nothing.

        The first for a decode engine has them connected, and whoever comes meanwhile waits for that too.
        """
        if self._clock is None:
            return None
        host, comes_at = order.decode_host, asyncio.get_running_loop().time() + self._order_s
        self._connected_at.setdefault(host, comes_at + self._network.dial_s(self.name, host, self._connect_s))
        return max(comes_at, self._connected_at[host])

    def send(
        self, order: PrefillOrder, size: int, seconds: float, cached_tokens: int,
        on_arrived: Callable[[float], None],
    ) -> Transfer | PartedTransfer:  # fmt: skip
        """Send the KVCache of a prompt, of so many bytes, whose computing begins now and takes so many
        seconds."""
        pieces = self.pieces(order.prompt_tokens, seconds, size, cached_tokens, order.held_tokens)
        if self._clock is None:
            pieces = self._last_layer_apart(pieces, order.prompt_tokens)
            return self._network.send(self.name, order.decode_host, pieces, on_arrived)
        pair = (self.name, order.decode_host)
        return PartedTransfer(self._network, self._clock, pair, pieces, on_arrived)

    def send_made(self, host: str, size: int, on_arrived: Callable[[float], None]) -> Transfer:
        """Send KVCache that is all there."""
        return self._network.send(self.name, host, [(0.0, size)], on_arrived)

    def size(self, tokens: int) -> int:
        """Bytes of a transfer of so many tokens."""
        return self._model.state_bytes + self._model.token_bytes * tokens + HANDOVER_BYTES

    def pieces(
        self, tokens: int, seconds: float, size: int, cached_tokens: int, held_tokens: int
    ) -> list[tuple[float, int]]:
        """Layer by layer as they are computed: what is cached at once, the rest of the growing part evenly,
        the state with the last chunk; and nothing of what the receiver holds."""
        before = (tokens - 1) // self._chunk_tokens * self._chunk_tokens
        first = max(cached_tokens, held_tokens)
        if not before or (before == cached_tokens == held_tokens):
            return [(seconds, size)]
        early, early_s = (
            self._model.token_bytes * (before - first),
            self._done_s(before, seconds, cached_tokens),
        )
        if not first:
            return [(early_s, early), (seconds - early_s, size - early)]
        ready = self._model.token_bytes * max(0, cached_tokens - held_tokens)
        first_s = self._done_s(first, seconds, cached_tokens)
        made = [
            (0.0, ready), (first_s, 0), (early_s - first_s, early), (seconds - early_s, size - ready - early),
        ]  # fmt: skip
        return [(piece_s, piece) for piece_s, piece in made if piece_s or piece]

    def _last_layer_apart(self, pieces: list[tuple[float, int]], tokens: int) -> list[tuple[float, int]]:
        """In a paced engine the last layer grows (`model.paced_layout`): what it makes of the last chunk is
        there when that is computed, all at once."""
        *before, (seconds, size) = pieces
        grown = self._model.token_bytes * ((tokens - 1) % self._chunk_tokens + 1) + HANDOVER_BYTES
        grown = min(grown, size)
        return [*before, (seconds, size - grown), (0.0, grown)]

    def _done_s(self, boundary: int, seconds: float, cached_tokens: int) -> float:
        """When the tokens before a boundary are computed, in a prefill of so many seconds."""
        if boundary == cached_tokens:
            return 0.0
        return min(seconds, self._prefill_s(boundary, cached_tokens))


class _Prefilling(Job):
    """One order of a prefill engine: over when it is computed, and its arrival was acknowledged."""

    __slots__ = (
        "_client", "_computed", "_ended", "_first_byte_at", "_kept", "_last_ack_at", "_on_its_way", "_order",
        "_size", "_tell", "_transfer",
    )  # fmt: skip

    def __init__(self, client: SimulatedPrefill, order: PrefillOrder, tell: Tell, ended: Ended) -> None:
        super().__init__(order.prompt_tokens, order.since, order.submitted_at)
        self._client, self._order, self._tell, self._ended = client, order, tell, ended
        self._size = client.size(order.prompt_tokens - order.held_tokens)
        self._kept = None
        if client.cache is not None and order.blocks is not None:
            self._kept = client.cache.prefilling(order.blocks, tell_all=order.tell_all)
        self._first_byte_at = 0.0
        self._computed = False
        self._last_ack_at: float | None = None
        self._transfer: Transfer | PartedTransfer | None = None
        self._on_its_way: asyncio.TimerHandle | None = None
        comes_at = client.comes_at(order)
        if comes_at is None:
            client.engine.join(self)
        else:
            self._on_its_way = asyncio.get_running_loop().call_at(comes_at, self._join)

    def _join(self) -> None:
        """The order has come to its engine."""
        self._on_its_way = None
        try:
            self._client.engine.join(self)
        except EngineError as error:
            self._ended(error)

    def cancel(self) -> None:
        if self._transfer is not None:
            self._transfer.cancel()
        if self._on_its_way is not None:
            self._on_its_way.cancel()
        else:
            self._client.engine.leave(self)
        if self._kept is not None:
            self._kept.sent()

    def withdraw(self) -> None:
        if self._on_its_way is None and self._client.engine.withdraw(self):
            self._tell({"stage": "withdrawn", "since": self.since})
        elif self._computed and self._transfer and self._transfer.waits and not self._order.held_tokens:
            self._transfer.cancel()
            self._transfer = None
            self._tell({"stage": "unsent"})

    def redirect(self, order: RedirectOrder) -> None:
        self._order = replace(self._order, held_tokens=order.held_tokens)
        self._size = self._client.size(self._order.prompt_tokens - order.held_tokens)
        self._first_byte_at = asyncio.get_running_loop().time()
        self._transfer = self._client.send_made(order.decode_host, self._size, self._on_arrived)

    def find_cached(self) -> int:
        return self._kept.look() if self._kept else 0

    def on_started(self, seconds: float) -> None:
        self._transfer = self._client.send(
            self._order, self._size, seconds, self.cached_tokens, self._on_arrived
        )

    def on_computed(self, started_at: float, finished_at: float) -> None:
        self._first_byte_at, self._computed = started_at, True  # it leaves while it is made
        cached_tokens = self.cached_tokens
        self._tell(
            {
                "stage": "prefilled",
                "started_at": started_at,
                "finished_at": finished_at,
                "computed_tokens": self._order.prompt_tokens - cached_tokens,
                "cached_tokens": cached_tokens,
                "decoded_tokens": self._kept.decoded_tokens if self._kept else 0,
            }
        )
        if self._kept is not None:  # now, before the next in line looks
            self._tell(self._kept.keep())
        self._end_if_over()

    def _on_arrived(self, back_s: float) -> None:
        now = asyncio.get_running_loop().time()
        self._transfer, self._last_ack_at = None, now + back_s
        self._client.landings.arrived(self._order.request_id, self._size, now)
        self._end_if_over()

    def _end_if_over(self) -> None:
        if not self._computed or self._last_ack_at is None:
            return
        if self._kept is not None:
            self._kept.sent()
        self._tell(
            {
                "stage": "sent",
                "bytes": self._size,
                "first_byte_at": self._first_byte_at,
                "last_ack_at": self._last_ack_at,
                "retried": 0,
            }
        )
        self._ended(None)


class SimulatedDecode:
    """A decode engine, and its end of the transfers."""

    def __init__(
        self, name: str, engine: AnalyticDecode, landings: Landings, cache: SimulatedCache | None = None
    ) -> None:
        self.name, self.engine, self.landings, self.cache = name, engine, landings, cache

    async def state(self) -> dict[str, Any]:
        return asdict(self.engine.stats)

    def begin(self, path: str, order: EngineTask, tell: Tell, ended: Ended) -> OpenOrder:
        """All tokens after the first are told of at once, when the last has come: one by one, they
        would cost as much as all the rest."""
        assert isinstance(order, DecodeOrder)
        try:
            self.engine.reserve()
        except EngineError as error:
            raise EngineError(error.what, where=self.name, remedy=error.remedy) from error
        return _Decoding(self, order, tell, ended)

    def stages(self, path: str, order: EngineTask) -> AsyncGenerator[dict[str, Any], None]:
        assert self.cache is not None, "only caches are copied"
        return self.cache.stages(order)


class _Decoding(Sequence):
    """One order of a decode engine, for which memory is reserved: over with its last token."""

    __slots__ = ("_cache", "_client", "_ended", "_open", "_order", "_tell")

    def __init__(self, client: SimulatedDecode, order: DecodeOrder, tell: Tell, ended: Ended) -> None:
        super().__init__(order.output_tokens)
        self._client, self._order, self._tell, self._ended = client, order, tell, ended
        self._open = True
        client.landings.expect(order.request_id, self)
        self._cache = client.cache if order.blocks else None
        held_tokens = self._cache.find_held(order.blocks) if self._cache and order.blocks else 0
        tell({"stage": "reserved", "held_tokens": held_tokens})

    def landed(self, size: int, at: float) -> None:
        """Its KVCache is here."""
        self._tell({"stage": "received", "bytes": size, "last_byte_at": at})
        if self._cache and self._order.blocks:
            self._tell(self._cache.keep_received(self._order.blocks, tell_all=self._order.tell_all))
        self._client.engine.join(self)

    def cancel(self) -> None:
        if self._open:
            self._close()
            self._client.engine.leave(self)

    def withdraw(self) -> None:
        """It goes on."""

    def redirect(self, order: RedirectOrder) -> None:
        raise AssertionError("it was never given back")

    def _close(self) -> None:
        self._open = False
        self._client.landings.forget(self._order.request_id)
        self._client.engine.release()

    def on_first(self, at: float) -> None:
        self._tell({"stage": "restored", "at": at})
        self._tell({"stage": "tokens", "tokens": bytes(1)})

    def on_last(self, at: float) -> None:
        if not self._open:
            return
        self._close()
        order = self._order
        if self._cache is not None:
            self._cache.keep_answer(order.request_id, order.prompt_tokens, order.output_tokens)
        if order.output_tokens > 1:
            self._tell({"stage": "tokens", "tokens": bytes(order.output_tokens - 1)})
        self._ended(None)


class SimulatedPair:
    """One instance that can do either, as the orders come; its scheduler gives it those of its role."""

    def __init__(self, prefill: EngineClient, decode: EngineClient) -> None:
        self._prefill, self._decode = prefill, decode

    def begin(self, path: str, order: EngineTask, tell: Tell, ended: Ended) -> OpenOrder:
        return (self._decode if path == "/decode" else self._prefill).begin(path, order, tell, ended)

    def stages(self, path: str, order: EngineTask) -> AsyncGenerator[dict[str, Any], None]:
        return self._prefill.stages(path, order)

    async def state(self) -> dict[str, Any]:
        prefill, decode = await self._prefill.state(), await self._decode.state()
        return {key: prefill[key] + decode[key] for key in prefill}
