"""Executors that compute nothing: tokens are counted up, and a step waits until a test allows it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from prfaas_lab.engine.executor import Emit
from prfaas_lab.model.buffers import IncomingCache, segment_keys
from prfaas_lab.model.layout import CacheLayout, LayerLayout, Part, SegmentKey
from prfaas_lab.workload.request import GREEDY, Sampling

LAYOUT = CacheLayout(
    layers=(
        LayerLayout(kind="linear", parts=(Part(name="recurrent-0", kind="state", shape=(2,), itemsize=4),)),
        LayerLayout(kind="full", parts=(Part(name="keys", kind="growing", shape=(1,), itemsize=4),)),
    ),
    chunk_tokens=64,
)


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakePrefill:
    """Takes a second of the clock a prompt; answers with its length."""

    layout = LAYOUT

    def __init__(self, clock: Clock) -> None:
        self.order: list[int] = []
        self.closed = False
        self.proceed = asyncio.Event()
        self.failure: Exception | None = None
        self._clock = clock

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
        self.order.append(prompt[0])
        await self.proceed.wait()
        self._clock.now += 1
        if self.failure is not None:
            raise self.failure
        for key in segment_keys(self.layout, len(prompt)):
            emit(key, memoryview(bytes(self.layout.segment_bytes(key, len(prompt)))))
        for boundary in snapshots:
            emit(SegmentKey(0, 0, boundary // self.layout.chunk_tokens - 1), memoryview(bytes(8)))
        return len(prompt)

    async def close(self) -> None:
        self.closed = True


class FakeDecode:
    """Every sequence counts up from its first token. `widest` is the largest batch there was."""

    layout = LAYOUT
    report_tokens = 1

    def __init__(self) -> None:
        self.batch: dict[str, int] = {}
        self.joined: list[str] = []
        self.widest = 0
        self.closed = False
        self.proceed = asyncio.Event()
        self.proceed.set()
        self.join_failure: Exception | None = None
        self.step_failure: Exception | None = None

    async def join(
        self, request_id: str, incoming: IncomingCache, first_token: int, sampling: Sampling = GREEDY
    ) -> None:
        assert incoming.complete
        assert request_id not in self.batch
        await asyncio.sleep(0)
        if self.join_failure is not None:
            raise self.join_failure
        self.batch[request_id] = first_token
        self.joined.append(request_id)
        self.widest = max(self.widest, len(self.batch))

    async def leave(self, request_id: str) -> None:
        await asyncio.sleep(0)
        del self.batch[request_id]

    async def step(self, most: int, hurry: asyncio.Event) -> dict[str, Sequence[int]]:
        await asyncio.sleep(0)
        await self.proceed.wait()
        if self.step_failure is not None:
            raise self.step_failure
        self.batch = {key: token + 1 for key, token in self.batch.items()}
        return {key: (token,) for key, token in self.batch.items()}

    async def reset(self) -> None:
        self.batch.clear()

    async def close(self) -> None:
        self.closed = True
