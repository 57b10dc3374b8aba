"""A simulated engine's prefix cache: found and kept in its turn, copied over the fluid network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from prfaas_lab.engine.sized_cache import SizedAnswer, SizedCache, SizedCopy
from prfaas_lab.errors import EngineError
from prfaas_lab.fabric.fluid_network import FluidNetwork
from prfaas_lab.kvcache import Prompt, Transfer
from prfaas_lab.lab.cache_news import PromptNames, news_of
from prfaas_lab.lab.orders import EngineTask, ReceiveCopy, SendCopy


class CopyLandings:
    """Where copies end, of all engines."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Transfer, asyncio.Future[SizedCopy]]] = {}

    def expect(self, copy_id: str, room: Transfer) -> asyncio.Future[SizedCopy]:
        """Done when the copy is there; `room` is on its receiver's budget."""
        there: asyncio.Future[SizedCopy] = asyncio.get_running_loop().create_future()
        self._open[copy_id] = room, there
        return there

    def forget(self, copy_id: str) -> None:
        self._open.pop(copy_id, None)

    def begins(self, copy_id: str, copy: SizedCopy) -> None:
        """It is about to be sent. Raises CacheError when its receiver has no room for it."""
        if copy_id in self._open:
            self._open[copy_id][0].grow(copy.size_bytes)

    def arrived(self, copy_id: str, copy: SizedCopy) -> None:
        _, there = self._open.get(copy_id, (None, None))
        if there is not None and not there.done():
            there.set_result(copy)


class SimulatedCache:
    """One engine's, with the orders by which prefixes are copied (as `cache_ports`)."""

    def __init__(
        self, name: str, cache: SizedCache, network: FluidNetwork, landings: CopyLandings,
        *, most_answers: int = 0,
    ) -> None:  # fmt: skip
        """`most_answers` of a decode engine wait to be handed over; of more, the oldest are dropped."""
        self._name, self._cache, self._network, self._landings = name, cache, network, landings
        self._most_answers = most_answers
        self._answers: dict[str, SizedAnswer] = {}

    def prefilling(self, blocks: PromptNames, *, tell_all: bool) -> Prefilling:
        """A prompt that is to be prefilled here."""
        return Prefilling(self._cache, blocks.prompt(), tell_all)

    def find_held(self, blocks: PromptNames) -> int:
        """Tokens of a prompt that need not be sent here."""
        return self._cache.find(blocks.prompt())[0]

    def keep_received(self, blocks: PromptNames, *, tell_all: bool) -> dict[str, Any]:
        """Take in the blocks of a prompt whose KVCache is here now; the news of it."""
        self._cache.keep_received(blocks.prompt())
        return _news(self._cache, in_full=tell_all)

    def keep_answer(self, request_id: str, prompt_tokens: int, output_tokens: int) -> None:
        """An answer is complete: keep what decoding computed of it, until it is asked for. Its last token
        was chosen, and never computed on."""
        if not self._most_answers:
            return
        answer = self._cache.answer(prompt_tokens, prompt_tokens + output_tokens - 1)
        if answer is not None:
            self._answers[request_id] = answer
        while len(self._answers) > self._most_answers:
            self._answers.pop(next(iter(self._answers))).transit.release()

    def stages(self, order: EngineTask) -> AsyncGenerator[dict[str, Any], None]:
        """Either end of a copy."""
        if isinstance(order, ReceiveCopy):
            return self._receive(order)
        assert isinstance(order, SendCopy)
        return self._send(order)

    async def _receive(self, order: ReceiveCopy) -> AsyncGenerator[dict[str, Any], None]:
        prompt, pool = order.blocks.prompt(), self._cache.pool
        with pool.retain(prompt) as held:
            with pool.stage(None, 0) as room:
                there = self._landings.expect(order.copy_id, room)
                try:
                    yield {"stage": "ready", "held_tokens": held.tokens}
                    copy = await there
                finally:
                    self._landings.forget(order.copy_id)
            usable_tokens = self._cache.adopt(prompt, copy, decoded_from=order.decoded_from)
        yield {"stage": "received", "usable_tokens": usable_tokens, "bytes": copy.size_bytes}
        yield _news(self._cache, in_full=False)

    async def _send(self, order: SendCopy) -> AsyncGenerator[dict[str, Any], None]:
        prompt = order.blocks.prompt()
        if order.answer_of is None:
            yield await self._carry(order, self._cache.copy_beyond(prompt, order.held_tokens))
            return
        answer = self._answers.pop(order.answer_of, None)
        if answer is None:
            raise EngineError("nothing is kept of this answer", where=order.answer_of)
        with answer.transit:
            sent = await self._carry(order, self._cache.answer_beyond(prompt, order.held_tokens, answer))
        yield sent
        yield _news(self._cache, in_full=False)

    async def _carry(self, order: SendCopy, copy: SizedCopy) -> dict[str, Any]:
        """Send it; what is told of it once it is there. All of it takes room at its receiver from now on."""
        loop = asyncio.get_running_loop()
        acknowledged: asyncio.Future[float] = loop.create_future()

        def arrived(back_s: float) -> None:
            self._landings.arrived(order.copy_id, copy)
            if not acknowledged.done():
                acknowledged.set_result(loop.time() + back_s)

        with copy.lease:
            self._landings.begins(order.copy_id, copy)
            transfer = self._network.send(self._name, order.host, [(0.0, copy.size_bytes)], arrived)
            try:
                last_ack_at = await acknowledged
            except BaseException:
                transfer.cancel()
                raise
        return {"stage": "sent", "tokens": copy.tokens, "bytes": copy.size_bytes, "last_ack_at": last_ack_at}


class Prefilling:
    """One prompt's dealings with a cache: `look` in its turn, `keep` when it is computed, `sent` when its
    receiver has it or it was given up."""

    def __init__(self, cache: SizedCache, prompt: Prompt, tell_all: bool) -> None:
        self._cache, self._prompt, self._tell_all = cache, prompt, tell_all
        self.cached_tokens = self.decoded_tokens = 0
        self._tail: Transfer | None = None
        self._snapshots: tuple[int, ...] = ()

    def look(self) -> int:
        """How much of it is cached. Those before it in line have filled the cache since it came."""
        self.cached_tokens, self.decoded_tokens = self._cache.find(self._prompt)
        self._snapshots = self._cache.snapshots_for(self._prompt)
        return self.cached_tokens

    def keep(self) -> dict[str, Any]:
        """Keep the rest, for the next; the news of it. What belongs to no block, and the state at its end,
        count against the budget until they are sent."""
        self._cache.keep(self._prompt, self.cached_tokens, self._snapshots)
        self._tail = self._cache.in_transit(self._prompt.tokens % self._prompt.block_tokens)
        return _news(self._cache, in_full=self._tell_all)

    def sent(self) -> None:
        """Doing so twice is fine."""
        if self._tail is not None:
            self._tail.release()
            self._tail = None


def _news(cache: SizedCache, *, in_full: bool) -> dict[str, Any]:
    return {"stage": "cache", **news_of(cache.pool, in_full=in_full)}
