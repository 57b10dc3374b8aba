"""A hardware profile behind an engine: it keeps the profile's time and computes nothing.

Time is kept by deadlines that follow from each other, not from when a timer fired: a late wake-up
shortens the next wait instead of adding up. All durations are the profile's times `time_scale`.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from prfaas_lab.engine.executor import Emit
from prfaas_lab.engine.payload import Pattern
from prfaas_lab.errors import EngineError
from prfaas_lab.model.buffers import IncomingCache, Produced, chunk_spans
from prfaas_lab.model.layout import CacheLayout, SegmentKey
from prfaas_lab.model.profile import Profile
from prfaas_lab.workload.request import GREEDY, Sampling

REPORT_TOKENS = 128
"""Output tokens that a paced engine tells of at once: one by one they would keep the controller busy."""


class PacedPrefill:
    """Prefill in a profile's time. `outgoing` may alter segments on their way out (tests corrupt)."""

    def __init__(
        self,
        profile: Profile,
        layout: CacheLayout,
        *,
        time_scale: float,
        rng: random.Random,
        outgoing: Callable[[SegmentKey, memoryview], memoryview] | None = None,
    ) -> None:
        self.layout = layout
        self._profile, self._time_scale, self._rng, self._outgoing = profile, time_scale, rng, outgoing
        self._pattern = Pattern(layout)
        self._free_at = -math.inf

    async def prefill(
        self,
        prompt: Sequence[int],
        emit: Emit,
        *,
        sampling: Sampling = GREEDY,
        cached: IncomingCache | None = None,
        snapshots: Collection[int] = (),
        arrived_at: float | None = None,
    ) -> int:
        """Emits as the real model would: cached chunks at once, then each layer of each chunk when its
        part of the time is over, the fixed state with the last chunk. A hit shortens the time as the
        profile says (`Profile.prefill_s`). It begins when the prompt came, or
        when the one before it was due, whichever is later: that a timer fired late costs no throughput.
        The answer is a random number that the payload depends on (and a token id: it is part of what
        a session's next prompt says)."""
        came_at = asyncio.get_running_loop().time() if arrived_at is None else arrived_at
        begins_at = max(self._free_at, came_at)
        tokens, wanted, nonce = len(prompt), {len(prompt), *snapshots}, self._rng.getrandbits(31)
        start_tokens = 0 if cached is None else cached.tokens
        for span in chunk_spans(start_tokens, self.layout.chunk_tokens):
            for layer in range(len(self.layout.layers)):
                self._export(layer, span, wanted, nonce, emit)
        at = begins_at
        for span in chunk_spans(tokens, self.layout.chunk_tokens, start=start_tokens):
            until = begins_at + self._time_scale * self._profile.prefill_s(span[1], start_tokens)
            await self._chunk(span, at, until, wanted, nonce, emit)
            at = until
        self._free_at = at
        return nonce

    async def close(self) -> None:
        """Nothing is held."""

    async def _chunk(
        self, span: tuple[int, int], since: float, until: float, wanted: set[int], nonce: int, emit: Emit
    ) -> None:
        """One chunk, layer by layer. A layer that emits nothing needs no wake-up of its own."""
        layers = self.layout.layers
        for index, layer in enumerate(layers):
            last = index == len(layers) - 1
            if last or span[1] in wanted or any(part.kind == "growing" for part in layer.parts):
                await _sleep_until(since + (until - since) * (index + 1) / len(layers))
                self._export(index, span, wanted, nonce, emit)

    def _export(self, layer: int, span: tuple[int, int], wanted: set[int], nonce: int, emit: Emit) -> None:
        """One layer's part of a chunk, with its state where that is wanted. What was cached is made anew:
        it would say no more."""
        chunk = span[0] // self.layout.chunk_tokens
        for number, part in enumerate(self.layout.layers[layer].parts):
            if part.kind == "growing" or span[1] in wanted:
                key = SegmentKey(layer, number, chunk)
                segment = self._pattern.segment(nonce, key, self.layout.segment_bytes(key, span[1]))
                emit(key, self._outgoing(key, segment) if self._outgoing else segment)


@dataclass(slots=True)
class _Row:
    """A sequence of the batch: the tokens whose KVCache there would be, and what its payload depends on."""

    joined_at: int
    tokens: int
    nonce: int


class PacedDecode:
    """Decoding in a profile's time: all sequences of the batch get a token every step."""

    report_tokens = REPORT_TOKENS

    def __init__(
        self, profile: Profile, layout: CacheLayout, *, time_scale: float, keep_answers: bool = False
    ) -> None:
        self.layout = layout
        self._profile, self._time_scale, self._keep_answers = profile, time_scale, keep_answers
        self._pattern = Pattern(layout)
        self._batch: dict[str, _Row] = {}
        self._stepped_at = 0.0

    async def join(
        self, request_id: str, incoming: IncomingCache, first_token: int, sampling: Sampling = GREEDY
    ) -> None:
        """Raises EngineError when the payload is not what prefill sent."""
        if damaged := self._pattern.damaged(first_token, incoming):
            raise EngineError(
                f"{len(damaged)} segments arrived changed, first {damaged[0]}", where=request_id
            )
        if not self._batch:
            self._stepped_at = asyncio.get_running_loop().time()
        self._batch[request_id] = _Row(incoming.tokens, incoming.tokens, first_token)

    async def leave(self, request_id: str) -> Produced | None:
        row = self._batch.pop(request_id, None)
        return self._produced(row) if row is not None and self._keep_answers else None

    async def step(self, most: int, hurry: asyncio.Event) -> dict[str, Sequence[int]]:
        """As many whole steps as fit until somebody is in a hurry, all of the batch's present size."""
        step_s = self._time_scale * self._profile.step_s(len(self._batch))
        steps, began_at = min(most, self.report_tokens), self._stepped_at
        try:
            async with asyncio.timeout_at(began_at + steps * step_s):
                await hurry.wait()
        except TimeoutError:
            pass
        else:
            passed_s = asyncio.get_running_loop().time() - began_at
            steps = min(steps, max(1, math.ceil(passed_s / step_s)))
            await _sleep_until(began_at + steps * step_s)
        self._stepped_at = began_at + steps * step_s
        for row in self._batch.values():
            row.tokens += steps
        return dict.fromkeys(self._batch, (0,) * steps)

    async def reset(self) -> None:
        self._batch.clear()

    async def close(self) -> None:
        """Nothing is held."""

    def _produced(self, row: _Row) -> Produced | None:
        """As the real model would: the growing cache up to the last chunk boundary, and the state there."""
        width = self.layout.chunk_tokens
        first, end = row.joined_at // width * width, row.tokens // width * width
        if end == first:
            return None
        segments = []
        for span in chunk_spans(end, width, start=first):
            for layer, layout in enumerate(self.layout.layers):
                for number, part in enumerate(layout.parts):
                    if part.kind == "growing" or span[1] == end:
                        key = SegmentKey(layer, number, span[0] // width)
                        size = self.layout.segment_bytes(key, end)
                        segments.append((key, self._pattern.segment(row.nonce, key, size)))
        return Produced(first, end, tuple(segments))


async def _sleep_until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
