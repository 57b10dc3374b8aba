"""Where prefixes enter and leave an engine's cache: the orders by which caches are copied."""

from __future__ import annotations

from dataclasses import asdict

from aiohttp import web

from prfaas_lab.engine.answers import Answers
from prfaas_lab.engine.prefix_cache import PrefixCache
from prfaas_lab.engine.prefix_copies import Landing, Loan
from prfaas_lab.errors import EngineError
from prfaas_lab.lab.cache_news import news_of
from prfaas_lab.lab.orders import ReceiveCopy, SendCopy
from prfaas_lab.lab.stages import StageStream
from prfaas_lab.model.buffers import Produced
from prfaas_lab.transport import KVReceiver, KVSender


class CachePorts:
    """Copies cross the same connections as the KVCache of requests does, and count as its traffic. They
    are exact whatever the compression: what prefill resumes from must not lose more with every copy."""

    def __init__(
        self, cache: PrefixCache, sender: KVSender, receiver: KVReceiver, answers: Answers | None = None
    ) -> None:
        """`answers`: what a decode engine has to hand over."""
        self._cache, self._sender, self._receiver, self._answers = cache, sender, receiver, answers

    @property
    def routes(self) -> list[web.RouteDef]:
        return [web.post("/cache/receive", self._receive), web.post("/cache/send", self._send)]

    async def _receive(self, http: web.Request) -> web.StreamResponse:
        order = ReceiveCopy.model_validate_json(await http.read())
        async with StageStream(http) as stages:
            prompt = order.blocks.prompt()
            async with self._cache.at_hand(prompt, to_keep=True):
                landing = Landing(self._cache, prompt)
            with landing:
                incoming = self._receiver.expect(order.copy_id, landing.destination)
                try:
                    await stages.say("ready", held_tokens=landing.held_tokens)
                    received = await incoming.done()
                finally:
                    incoming.cancel()
                usable_tokens = landing.adopt(decoded_from=order.decoded_from)
            await stages.say("received", usable_tokens=usable_tokens, **asdict(received))
            await stages.say("cache", **news_of(self._cache.pool, in_full=False))
        return stages.response

    async def _send(self, http: web.Request) -> web.StreamResponse:
        order = SendCopy.model_validate_json(await http.read())
        async with StageStream(http) as stages:
            if order.answer_of is None:
                prompt = order.blocks.prompt()
                async with self._cache.at_hand(prompt):
                    loan = Loan.of_prefix(self._cache, prompt, order.held_tokens)
                with loan:
                    await self._out(order, loan, stages)
            else:
                await self._send_answer(order, order.answer_of, stages)
        return stages.response

    async def _send_answer(self, order: SendCopy, request_id: str, stages: StageStream) -> None:
        if self._answers is None:
            raise EngineError("keeps no answers", where=request_id)
        prompt = order.blocks.prompt()
        with await self._answers.take(request_id) as transfer:
            produced: Produced = transfer.payload
            if produced.tokens != len(prompt.blocks) * prompt.block_tokens:
                raise EngineError(
                    f"came to {produced.tokens} tokens, which {len(prompt.blocks)} blocks do not name",
                    where=request_id,
                )
            async with self._cache.at_hand(prompt, to_keep=True):
                loan = Loan.of_answer(self._cache, prompt, order.held_tokens, produced)
            with loan:
                await self._out(order, loan, stages)
        await stages.say("cache", **news_of(self._cache.pool, in_full=False))

    async def _out(self, order: SendCopy, loan: Loan, stages: StageStream) -> None:
        if not loan.segments:
            raise EngineError("holds no more of this prefix", where=order.copy_id)
        outgoing = await self._sender.open(order.copy_id, (order.host, order.port), exact=True)
        try:
            for key, segment in loan.segments:
                outgoing.send(key, segment)
            sent = await outgoing.finish()
        except BaseException:
            outgoing.cancel()
            raise
        await stages.say("sent", tokens=loan.tokens, **asdict(sent))
