"""The real model behind an engine: torch in one worker thread, the event loop in another."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from transformers import DynamicCache, PreTrainedModel

from prfaas_lab.engine.executor import Emit
from prfaas_lab.errors import EngineError
from prfaas_lab.model.buffers import IncomingCache, Produced, chunk_spans
from prfaas_lab.model.layout import CacheLayout, SegmentKey
from prfaas_lab.model.torch_batch import DecodeBatch
from prfaas_lab.model.torch_build import one_thread
from prfaas_lab.model.torch_cache import build_cache, chunk_segments, new_cache, state_segments
from prfaas_lab.model.torch_reference import forward
from prfaas_lab.model.torch_sampling import Sampler
from prfaas_lab.workload.request import GREEDY, Sampling

Filter = Callable[[SegmentKey, memoryview], memoryview]

_SWITCH_INTERVAL_S = 0.001
"""How long the computing thread keeps the GIL when the event loop wants it (Python's default: 5 ms)."""

T = TypeVar("T")


class TorchPrefill:
    """Prefill on the real model. `outgoing` may alter segments on their way out (tests corrupt)."""

    def __init__(self, model: PreTrainedModel, layout: CacheLayout, outgoing: Filter | None = None) -> None:
        self.layout = layout
        self._model, self._outgoing = model, outgoing
        self._hooks = _LayerHooks(model)
        self._thread = _Worker("prefill")
        self._handover: _Handover | None = None

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
        assert cached is None or cached.tokens < len(prompt), "the last token of a prompt is always computed"
        self._handover = handover = _Handover(asyncio.get_running_loop(), emit, self._outgoing)
        job = _Prefill(
            self._model,
            self._hooks,
            self.layout,
            tuple(prompt),
            cached,
            frozenset(snapshots),
            handover,
            sampling,
        )
        try:
            first_token = await self._thread.run(job.compute)
        except Stopped:
            raise handover.failure or EngineError("the prefill engine was closed") from None
        finally:
            handover.stopped.set()
        if handover.failure is not None:
            raise handover.failure
        return first_token

    async def close(self) -> None:
        if self._handover is not None:
            self._handover.stopped.set()
        await self._thread.close()
        self._hooks.remove()


class TorchDecode:
    """Continuous batching on the real model."""

    report_tokens = 1

    def __init__(
        self, model: PreTrainedModel, layout: CacheLayout, *, max_batch: int, keep_answers: bool = False
    ) -> None:
        """`keep_answers`: whether a sequence that leaves tells what was computed of it."""
        self.layout = layout
        self._model, self._max_batch = model, max_batch
        self._marked = layout if keep_answers else None
        self._batch = DecodeBatch(model, max_batch, self._marked)
        self._thread = _Worker("decode")

    async def join(
        self, request_id: str, incoming: IncomingCache, first_token: int, sampling: Sampling = GREEDY
    ) -> None:
        def restore() -> None:
            cache = build_cache(self._model, incoming)
            sampler = None if sampling.greedy else sampler_of(sampling, drawn=1)
            self._batch.join(request_id, cache, incoming.tokens, first_token, sampler)

        await self._thread.run(restore)

    async def leave(self, request_id: str) -> Produced | None:
        def leave() -> Produced | None:
            produced = self._batch.produced(request_id)
            self._batch.leave(request_id)
            return produced

        return await self._thread.run(leave)

    async def step(self, most: int, hurry: asyncio.Event) -> dict[str, Sequence[int]]:
        given = await self._thread.run(self._batch.step)
        return {request_id: (token,) for request_id, token in given.items()}

    async def reset(self) -> None:
        self._batch = DecodeBatch(self._model, self._max_batch, self._marked)

    async def close(self) -> None:
        await self._thread.close()


def sampler_of(sampling: Sampling, *, drawn: int = 0) -> Sampler:
    return Sampler(temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed, drawn=drawn)


class _Worker:
    """The one thread in which this engine runs torch."""

    def __init__(self, name: str) -> None:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=one_thread)

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def close(self) -> None:
        """Waits for what runs, which was told to stop."""
        await asyncio.to_thread(self._pool.shutdown)


class Stopped(Exception):
    """The prefill was given up: its caller has gone, or could not take a segment."""


class _Handover:
    """Segments from the computing thread to `emit` on the loop, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, emit: Emit, outgoing: Filter | None) -> None:
        self.stopped = threading.Event()
        self.failure: Exception | None = None
        self._loop, self._emit, self._outgoing = loop, emit, outgoing

    def put(self, key: SegmentKey, segment: memoryview) -> None:
        """In the computing thread. Raises `Stopped` when nobody wants more."""
        if self.stopped.is_set():
            raise Stopped
        if self._outgoing is not None:
            segment = self._outgoing(key, segment)
        self._loop.call_soon_threadsafe(self._deliver, key, segment)

    def _deliver(self, key: SegmentKey, segment: memoryview) -> None:
        if self.stopped.is_set():
            return
        try:
            self._emit(key, segment)
        except Exception as error:
            self.failure = error
            self.stopped.set()


@dataclass(slots=True)
class _Prefill:
    """One prompt, in the computing thread."""

    model: PreTrainedModel
    hooks: _LayerHooks
    layout: CacheLayout
    prompt: tuple[int, ...]
    cached: IncomingCache | None
    snapshots: frozenset[int]
    handover: _Handover
    sampling: Sampling
    cache: DynamicCache = field(init=False)
    span: tuple[int, int] = (0, 0)

    @torch.inference_mode()
    def compute(self) -> int:
        chunk_tokens = self.layout.chunk_tokens
        start_tokens = 0 if self.cached is None else self.cached.tokens
        self.cache = new_cache(self.model) if self.cached is None else build_cache(self.model, self.cached)
        for span in chunk_spans(start_tokens, chunk_tokens):
            self.span = span
            for layer in range(len(self.layout.layers)):
                self._export(layer)
        logits = torch.empty(0)
        with self.hooks.after_each(self._export):
            for span in chunk_spans(len(self.prompt), chunk_tokens, start=start_tokens):
                self.span = span
                logits = forward(self.model, self.cache, self.prompt[slice(*span)])
        return sampler_of(self.sampling).pick(logits)

    def _export(self, layer: int) -> None:
        for key, segment in chunk_segments(self.cache, self.layout, layer, self.span):
            self.handover.put(key, segment)
        end = self.span[1]
        if end == len(self.prompt) or end in self.snapshots:
            for key, segment in state_segments(self.cache, self.layout, layer, end):
                self.handover.put(key, segment)


class _LayerHooks:
    """Calls back each time a decoder layer of the model has computed, in the thread that asked for it.

    Hooks sit on the model, which other threads may use; they are set once, since to set one while
    another thread computes is not safe.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._asked: tuple[int, Callable[[int], None]] | None = None
        decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
        self._hooks = [
            layer.register_forward_hook(functools.partial(self._computed, index))
            for index, layer in enumerate(decoder.layers)
        ]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    @contextlib.contextmanager
    def after_each(self, export: Callable[[int], None]) -> Iterator[None]:
        """Within, `export(layer)` runs after each layer that this thread computes."""
        self._asked = threading.get_ident(), export
        try:
            yield
        finally:
            self._asked = None

    def _computed(self, index: int, *_: object) -> None:
        asked = self._asked
        if asked is not None and asked[0] == threading.get_ident():
            asked[1](index)
