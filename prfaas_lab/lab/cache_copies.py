"""Copies prefixes between the caches of engines, over the network that serves requests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
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

    async def copy(self, prompt: Prompt, source: str, destination: str, *, reason: str) -> bool:
        """Copy what `source` can resume of `prompt` to `destination`; whether it is there now."""
        started_s = self._ledger.now()
        try:
            sent, received = await self._both_ends(prompt, source, destination)
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
            )
        )
        return True

    async def _both_ends(
        self, prompt: Prompt, source: str, destination: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        copy_id = f"copy-{next(self._numbers)}"
        try:
            async with asyncio.TaskGroup() as ends:
                receiving = ends.create_task(self._receive(copy_id, prompt, destination, ready))
                held_tokens = await ready
                sending = ends.create_task(self._send(copy_id, prompt, held_tokens, source, destination))
        except BaseExceptionGroup as errors:
            raise the_fault(errors) from errors
        return sending.result(), receiving.result()

    async def _receive(
        self, copy_id: str, prompt: Prompt, destination: str, ready: asyncio.Future[int]
    ) -> dict[str, Any]:
        order = ReceiveCopy(copy_id=copy_id, blocks=PromptNames.of(prompt))
        received, engine = None, self._engines[destination]
        async with aclosing(engine.client.stages("/cache/receive", order)) as stages:
            async for stage in stages:
                match stage["stage"]:
                    case "ready":
                        ready.set_result(stage["held_tokens"])
                    case "received":
                        received = stage
                    case "cache":
                        self._caches.learn(engine, stage)
        return _told(received, destination)

    async def _send(
        self, copy_id: str, prompt: Prompt, held_tokens: int, source: str, destination: str
    ) -> dict[str, Any]:
        host, port = self._network.data_address(source, destination)
        names = PromptNames.of(prompt)
        order = SendCopy(copy_id=copy_id, blocks=names, held_tokens=held_tokens, host=host, port=port)
        sent = None
        async with aclosing(self._engines[source].client.stages("/cache/send", order)) as stages:
            async for stage in stages:
                if stage["stage"] == "sent":
                    sent = stage
        return _told(sent, source)


def _told(stage: dict[str, Any] | None, engine: str) -> dict[str, Any]:
    if stage is None:
        raise EngineError("ended a copy without a word about it", where=engine)
    return stage
