"""What computes: the seam between an engine's queueing and the model, or a profile of one.

Two implementations: `torch_executor` (the real model, in one worker thread) and a paced one (a
hardware profile). All methods are called from the event loop, one at a time per executor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from prfaas_lab.model.buffers import IncomingCache, Produced
from prfaas_lab.model.layout import CacheLayout, SegmentKey
from prfaas_lab.workload.request import GREEDY, Sampling

Emit = Callable[[SegmentKey, memoryview], None]
"""Takes a finished segment, on the event loop. The bytes stay valid as long as the view is held."""


class PrefillExecutor(Protocol):
    layout: CacheLayout

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
        """Compute a prompt chunk by chunk; the first output token, chosen as `sampling` says.

        `cached` is complete for the prompt's beginning up to a chunk boundary; it is used up.
        Every segment is emitted as soon as its layer has it, cached ones first, and all of them
        before this returns. At the chunk boundaries `snapshots`, beyond what is cached, the states
        are emitted too: under the chunk that ends there. When cancelled, or when `emit` raises,
        computing stops at the next layer. `arrived_at` is the loop's time when the prompt
        came to wait; None: it comes now.
        """
        ...

    async def close(self) -> None:
        """Stop computing and release what was held."""
        ...


class DecodeExecutor(Protocol):
    layout: CacheLayout
    report_tokens: int
    """How many output tokens are told of at once: 1, unless nobody reads them one by one."""

    async def join(
        self, request_id: str, incoming: IncomingCache, first_token: int, sampling: Sampling = GREEDY
    ) -> None:
        """Restore a complete cache and take the sequence into the batch; `sampling` chooses on."""
        ...

    async def leave(self, request_id: str) -> Produced | None:
        """Drop a sequence from the batch; what was computed of it that a next turn could resume from, where
        that is kept."""
        ...

    async def step(self, most: int, hurry: asyncio.Event) -> dict[str, Sequence[int]]:
        """One more token for every sequence of the batch, or as many steps at once as the executor
        likes, but at most `most`, and ending with the step under way once `hurry` is set: somebody
        waits to join or to leave."""
        ...

    async def reset(self) -> None:
        """Empty the batch after a failed step, whatever state that left."""
        ...

    async def close(self) -> None:
        """Stop computing and release what was held."""
        ...
