"""The real model behind an engine: torch in one worker thread, the event loop in another."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from prfaas_lab.engine.executor import Emit
from prfaas_lab.model.buffers import IncomingCache, chunk_spans
from prfaas_lab.model.layout import CacheLayout, SegmentKey
from prfaas_lab.model.torch_batch import DecodeBatch
from prfaas_lab.model.torch_build import one_thread
from prfaas_lab.model.torch_cache import build_cache, chunk_segments, new_cache, state_segments
from prfaas_lab.model.torch_reference import forward

Filter = Callable[[SegmentKey, memoryview], memoryview]

_SWITCH_INTERVAL_S = 0.001
"""How long the computing thread keeps the GIL when the event loop wants it (Python's default: 5 ms)."""

T = TypeVar("T")


class Stopped(Exception):
    """The prefill was given up: its caller has gone, or could not take a segment."""


class TorchPrefill:
    """Prefill on the real model. `outgoing` may alter segments on their way out (tests corrupt)."""

    def __init__(self, model: PreTrainedModel, layout: CacheLayout, outgoing: Filter | None = None) -> None:
        self.layout = layout
        self._model, self._outgoing = model, outgoing
        self._thread = _Worker("prefill")

    async def prefill(self, prompt: Sequence[int], emit: Emit) -> int:
        handover = _Handover(asyncio.get_running_loop(), emit)
        try:
            return await self._thread.run(lambda: self._compute(prompt, handover))
        except Stopped:
            if handover.failure is not None:
                raise handover.failure from None
            raise
        finally:
            handover.stopped.set()

    async def close(self) -> None:
        await self._thread.close()

    @torch.inference_mode()
    def _compute(self, prompt: Sequence[int], handover: _Handover) -> int:
        cache = new_cache(self._model)
        span = (0, 0)

        def export(layer: int) -> None:
            for key, segment in chunk_segments(cache, self.layout, layer, span):
                handover.put(key, self._altered(key, segment))
            if span[1] == len(prompt):
                for key, segment in state_segments(cache, self.layout, layer, len(prompt)):
                    handover.put(key, self._altered(key, segment))

        logits = torch.empty(0)
        with _AfterEachLayer(self._model, export):
            for span in chunk_spans(len(prompt), self.layout.chunk_tokens):
                logits = forward(self._model, cache, prompt[span[0] : span[1]])
        return int(logits.argmax())

    def _altered(self, key: SegmentKey, segment: memoryview) -> memoryview:
        return segment if self._outgoing is None else self._outgoing(key, segment)


class TorchDecode:
    """Continuous batching on the real model."""

    def __init__(self, model: PreTrainedModel, layout: CacheLayout, *, max_batch: int) -> None:
        self.layout = layout
        self._model, self._max_batch = model, max_batch
        self._batch = DecodeBatch(model, max_batch)
        self._thread = _Worker("decode")

    async def join(self, request_id: str, incoming: IncomingCache, first_token: int) -> None:
        def restore() -> None:
            cache = build_cache(self._model, incoming)
            self._batch.join(request_id, cache, incoming.tokens, first_token)

        await self._thread.run(restore)

    async def leave(self, request_id: str) -> None:
        await self._thread.run(lambda: self._batch.leave(request_id))

    async def step(self) -> dict[str, int]:
        return await self._thread.run(self._batch.step)

    async def reset(self) -> None:
        self._batch = DecodeBatch(self._model, self._max_batch)

    async def close(self) -> None:
        await self._thread.close()


class _Worker:
    """The one thread in which this engine runs torch."""

    def __init__(self, name: str) -> None:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=one_thread)

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def close(self) -> None:
        """Waits for what runs now; what still queues is dropped."""
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)


class _Handover:
    """Segments from the computing thread to `emit` on the loop, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, emit: Emit) -> None:
        self.stopped = threading.Event()
        self.failure: BaseException | None = None
        self._loop, self._emit = loop, emit

    def put(self, key: SegmentKey, segment: memoryview) -> None:
        """In the computing thread. Raises `Stopped` when nobody wants more."""
        if self.stopped.is_set():
            raise Stopped
        self._loop.call_soon_threadsafe(self._deliver, key, segment)

    def _deliver(self, key: SegmentKey, segment: memoryview) -> None:
        if self.stopped.is_set():
            return
        try:
            self._emit(key, segment)
        except BaseException as error:
            self.failure = error
            self.stopped.set()


class _AfterEachLayer:
    """Calls `export(layer)` each time a decoder layer of the model has computed, in this thread.

    Hooks sit on the model, and another engine may use the same model in another thread.
    """

    def __init__(self, model: PreTrainedModel, export: Callable[[int], None]) -> None:
        decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
        self._layers = decoder.layers
        self._export = export
        self._thread = threading.get_ident()
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        for index, layer in enumerate(self._layers):
            self._hooks.append(layer.register_forward_hook(self._hook(index)))

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, index: int) -> Callable[..., None]:
        def exported(*_: object) -> None:
            if threading.get_ident() == self._thread:
                self._export(index)

        return exported
