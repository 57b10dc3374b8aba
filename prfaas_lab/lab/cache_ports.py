"""Where prefixes enter and leave an engine's cache: the orders by which caches are copied."""

from __future__ import annotations

from dataclasses import asdict

from aiohttp import web

from prfaas_lab.engine.answers import Answers
from prfaas_lab.engine.kept import Segment
from prfaas_lab.engine.prefix_cache import PrefixCache
from prfaas_lab.errors import EngineError
from prfaas_lab.kvcache import Prompt
from prfaas_lab.lab.cache_news import news_of
from prfaas_lab.lab.orders import ReceiveCopy, SendCopy
from prfaas_lab.lab.stages import StageStream
from prfaas_lab.model.buffers import Produced
from prfaas_lab.model.layout import SegmentKey
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
            landing = _Landing(self._cache, prompt)
            incoming = self._receiver.expect(order.copy_id, landing.destination)
            try:
                held_tokens = self._cache.pool.match(prompt).known_tokens
                await stages.say("ready", held_tokens=held_tokens)
                received = await incoming.done()
            finally:
                incoming.cancel()
            async with self._cache.at_hand(prompt, to_keep=True):
                usable_tokens = self._cache.adopt(prompt, landing.segments, decoded_from=order.decoded_from)
            await stages.say("received", usable_tokens=usable_tokens, **asdict(received))
            await stages.say("cache", **news_of(self._cache.pool, in_full=False))
        return stages.response

    async def _send(self, http: web.Request) -> web.StreamResponse:
        order = SendCopy.model_validate_json(await http.read())
        async with StageStream(http) as stages:
            if order.answer_of is None:
                prompt = order.blocks.prompt()
                async with self._cache.at_hand(prompt):
                    tokens, segments = self._cache.segments_beyond(prompt, order.held_tokens)
                await self._out(order, tokens, segments, stages)
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
                self._cache.keep_produced(prompt, produced)
                segments = self._cache.produced_beyond(prompt, order.held_tokens, produced)
            await self._out(order, produced.tokens, segments, stages)
        await stages.say("cache", **news_of(self._cache.pool, in_full=False))

    async def _out(self, order: SendCopy, tokens: int, segments: list[Segment], stages: StageStream) -> None:
        if not segments:
            raise EngineError("holds no more of this prefix", where=order.copy_id)
        outgoing = await self._sender.open(order.copy_id, (order.host, order.port), exact=True)
        try:
            for key, segment in segments:
                outgoing.send(key, segment)
            sent = await outgoing.finish()
        except BaseException:
            outgoing.cancel()
            raise
        await stages.say("sent", tokens=tokens, **asdict(sent))


class _Landing:
    """Where a copy's segments go until all of them are there."""

    def __init__(self, cache: PrefixCache, prompt: Prompt) -> None:
        self._cache, self._prompt = cache, prompt
        self._memory: dict[SegmentKey, bytearray] = {}

    @property
    def segments(self) -> dict[SegmentKey, memoryview]:
        return {key: memoryview(memory) for key, memory in self._memory.items()}

    def destination(self, key: SegmentKey, nbytes: int) -> memoryview:
        """Raises SegmentRefused."""
        memory = self._memory.get(key)
        if memory is None:
            memory = self._memory[key] = self._cache.room_for(self._prompt, key, nbytes)
        elif len(memory) != nbytes:
            raise ValueError(f"{key} came with {nbytes} bytes after {len(memory)}")
        return memoryview(memory)
