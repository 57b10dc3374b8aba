"""Encoding beside the event loop: it takes milliseconds per MB, and numpy and zstd let go of the GIL.

One thread encodes for all transfers of a sender, in turns: of each transfer one batch at a time, in the
order in which it was handed over. What waits is views of the caller's memory, and takes none of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.transport.codec import Codec

_BATCH_BYTES = 2**20
"""What one turn of the thread takes of a transfer: many small segments, or one that is larger."""

Encoded = Callable[[SegmentKey, int, memoryview], None]
"""Called on the loop with a segment's key, its size in memory, and what goes on the wire."""


class Encoder:
    """The thread. `codec` is only ever asked to encode in it: a zstd compressor belongs to one thread."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")

    def begin(self, batch: list[tuple[SegmentKey, memoryview]]) -> asyncio.Future[list[memoryview]]:
        return asyncio.get_running_loop().run_in_executor(self._thread, self._encode, batch)

    def close(self) -> None:
        """What it has in hand it finishes, for nobody."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _encode(self, batch: list[tuple[SegmentKey, memoryview]]) -> list[memoryview]:
        return [memoryview(self.codec.encode(key, segment)) for key, segment in batch]


class Encoding:
    """The segments of one transfer that have still to be encoded. Call from the loop's thread."""

    def __init__(self, encoder: Encoder, encoded: Encoded, failed: Callable[[BaseException], None]) -> None:
        self._encoder, self._encoded, self._failed = encoder, encoded, failed
        self._waiting: deque[tuple[SegmentKey, memoryview]] = deque()
        self._turn: asyncio.Future[list[memoryview]] | None = None
        self.pending_bytes = 0
        """In memory, of what was put and is not encoded."""

    @property
    def is_idle(self) -> bool:
        return self._turn is None

    def put(self, key: SegmentKey, segment: memoryview) -> None:
        self._waiting.append((key, segment))
        self.pending_bytes += len(segment)
        if self._turn is None:
            self._begin()

    def drop(self) -> None:
        """The transfer has ended: nothing more is told, and only what is being encoded is still read."""
        self._waiting.clear()
        self.pending_bytes = 0
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.cancel()

    def _begin(self) -> None:
        batch, size_bytes = [], 0
        while self._waiting and size_bytes < _BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size_bytes += len(batch[-1][1])
        self._turn = self._encoder.begin(batch)
        self._turn.add_done_callback(lambda turn: self._end(batch, turn))

    def _end(
        self, batch: list[tuple[SegmentKey, memoryview]], turn: asyncio.Future[list[memoryview]]
    ) -> None:
        if turn is not self._turn:
            return  # dropped
        self._turn = None
        if (error := turn.exception()) is not None:
            self._failed(error)
            return
        wires = turn.result()
        if self._waiting:
            self._begin()
        for (key, segment), wire in zip(batch, wires, strict=True):
            self.pending_bytes -= len(segment)
            self._encoded(key, len(segment), wire)
