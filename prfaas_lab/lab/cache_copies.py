"""Copies prefixes between the caches of engines, over the network that serves requests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from prfaas_lab.errors import EngineError, LabError
from prfaas_lab.kvcache import Prompt
from prfaas_lab.lab.cache_news import PromptNames
from prfaas_lab.lab.engines import Engine
from prfaas_lab.lab.faults import the_fault
from prfaas_lab.lab.kvcache_manager import KVCacheManager
from prfaas_lab.lab.orders import ReceiveCopy, SendCopy
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The end of a prefix that a decode engine computed: blocks from `decoded_from` on, and the states."""

    request_id: str
    decoded_from: int


class Addresses(Protocol):
    def data_address(self, source: str, destination: str) -> tuple[str, int]:
        """Host and port to dial from one engine to reach another's receiver."""
        ...


class CacheCopies:
    """Both ends of each copy at once. A copy that fails costs a recomputation, and is noted."""

    def __init__(
        self, engines: Mapping[str, Engine], network: Addresses, caches: KVCacheManager, ledger: Ledger
    ) -> None:
        self._engines, self._network, self._caches, self._ledger = engines, network, caches, ledger
        self._numbers = count(1)

    async def copy(
        self, prompt: Prompt, source: str, destination: str, *, reason: str, answer: Answer | None = None
    ) -> bool:
        """Copy what `source` can resume of `prompt` to `destination`; whether that can be resumed from there
        now. With an `answer`, the prompt ends with it, and `source` is the engine that decoded it."""
        ends = self._engines[source], self._engines[destination]
        reach = self._caches.usable_tokens(prompt, ends[0]) // prompt.block_tokens
        is_there = await self._copy(prompt, source, destination, reason, answer)
        if not is_there and answer is None:
            self._caches.copied_in_vain(prompt.beginning(reach), *ends)
        return is_there

    async def _copy(
        self, prompt: Prompt, source: str, destination: str, reason: str, answer: Answer | None
    ) -> bool:
        started_s = self._ledger.now()
        try:
            sent, received = await self._both_ends(prompt, source, destination, answer)
        except LabError as error:
            text = f"a prefix was not copied from {source} to {destination}: {error}"
            self._ledger.record(ev.Noted(at_s=self._ledger.now(), level="warning", text=text))
            return False
        self._ledger.record(
            ev.CacheCopied(
                at_s=self._ledger.now(),
                source=source,
                destination=destination,
                tokens=received["usable_tokens"],
                bytes=sent["bytes"],
                took_s=self._ledger.now() - started_s,
                reason=reason,
                answer_of=answer.request_id if answer else None,
            )
        )
        return bool(received["usable_tokens"] >= sent["tokens"])

    async def _both_ends(
        self, prompt: Prompt, source: str, destination: str, answer: Answer | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        copy_id, names = f"copy-{next(self._numbers)}", PromptNames.of(prompt)
        receive = ReceiveCopy(
            copy_id=copy_id, blocks=names, decoded_from=answer.decoded_from if answer else None
        )
        host, port = self._network.data_address(source, destination)
        try:
            async with asyncio.TaskGroup() as ends:
                receiving = ends.create_task(self._receive(receive, destination, ready))
                send = SendCopy(
                    copy_id=copy_id,
                    blocks=names,
                    held_tokens=await ready,
                    host=host,
                    port=port,
                    answer_of=answer.request_id if answer else None,
                )
                sending = ends.create_task(self._send(send, source))
        except BaseExceptionGroup as errors:
            raise the_fault(errors) from errors
        return sending.result(), receiving.result()

    async def _receive(
        self, order: ReceiveCopy, destination: str, ready: asyncio.Future[int]
    ) -> dict[str, Any]:
        received, engine = None, self._engines[destination]
        async with aclosing(engine.client.stages("/cache/receive", order)) as stages:
            async for stage in stages:
                match stage["stage"]:
                    case "ready":
                        ready.set_result(stage["held_tokens"])
                    case "received":
                        received = stage
                    case "cache":
                        self._caches.learn(engine, "prefill", stage)
        return _told(received, destination)

    async def _send(self, order: SendCopy, source: str) -> dict[str, Any]:
        sent, engine = None, self._engines[source]
        async with aclosing(engine.client.stages("/cache/send", order)) as stages:
            async for stage in stages:
                match stage["stage"]:
                    case "sent":
                        sent = stage
                    case "cache":
                        self._caches.learn(engine, "decode" if order.answer_of else "prefill", stage)
        return _told(sent, source)


def _told(stage: dict[str, Any] | None, engine: str) -> dict[str, Any]:
    if stage is None:
        raise EngineError("ended a copy without a word about it", where=engine)
    return stage
