"""Hands what decode computed of an answer to a prefill engine beside it, before the next turn asks for it.

In the paper the pool of a datacenter is one, and what its decode instances computed lies in it at once.
Here an engine has a share of its own: the copy is sent as soon as the answer is complete, while its
reader thinks, and never leaves the datacenter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from prfaas_lab.kvcache import Prompt
from prfaas_lab.lab import cache_copies
from prfaas_lab.lab.cache_copies import CacheCopies
from prfaas_lab.lab.engines import Engine
from prfaas_lab.lab.kvcache_manager import KVCacheManager
from prfaas_lab.workload.request import Request

_MAX_WAITING = 64


@dataclass(frozen=True, slots=True)
class _Handover:
    request_id: str
    prompt: Prompt
    decoded_from: int
    source: str
    destination: str


class Answers:
    """One hand-over at a time; of more than a few that wait, the oldest are given up."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        caches: KVCacheManager,
        copies: CacheCopies,
        *,
        datacenters: Collection[str],
    ) -> None:
        """`datacenters`: those that keep answers."""
        self._engines, self._caches, self._copies = engines, caches, copies
        self._datacenters = frozenset(datacenters)
        self._waiting: asyncio.Queue[_Handover] = asyncio.Queue(_MAX_WAITING)

    def offer(
        self, request: Request, prompt: Prompt, tokens: Sequence[int], *, prefill: str, decode: str
    ) -> None:
        """An answer is complete: `tokens`, after `prompt`. Nothing is to be done unless decoding came to a
        chunk boundary, and there is an engine in its datacenter that could resume there."""
        width, decoded_from = prompt.block_tokens, len(prompt.blocks) * prompt.block_tokens
        # The last token of an answer was chosen, and never computed on.
        reach = (len(request.prompt) + len(tokens) - 1) // width * width
        if reach <= decoded_from or self._engines[decode].datacenter not in self._datacenters:
            return
        said = (*request.prompt[decoded_from:], *tokens)
        # One token more than the blocks: all of them may then be reused.
        whole = self._caches.extend(prompt, said[: reach - decoded_from + 1])
        destination = self._destination(whole, prefill, decode)
        if destination is None:
            return
        if self._waiting.full():
            self._waiting.get_nowait()
        self._waiting.put_nowait(_Handover(request.id, whole, decoded_from, decode, destination))

    async def run(self) -> None:
        """Hand over what was offered, for as long as it is let run."""
        while True:
            job = await self._waiting.get()
            answer = cache_copies.Answer(request_id=job.request_id, decoded_from=job.decoded_from)
            reason = f"answer of {job.request_id}"
            await self._copies.copy(job.prompt, job.source, job.destination, reason=reason, answer=answer)

    def _destination(self, prompt: Prompt, prefill: str, decode: str) -> str | None:
        """The engine that prefilled the request if it is at home, else the one that lacks least."""
        home = self._engines[decode].datacenter
        near = [
            e for e in self._engines.values() if e.role == "prefill" and e.datacenter == home and e.view.alive
        ]
        if not near:
            return None
        held = self._caches.held_tokens
        best = max(
            near,
            key=lambda e: (e.name == prefill, held(prompt, e), -e.waiting_tokens, e.name),
        )
        return best.name
