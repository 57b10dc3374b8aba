"""An engine's second tier: files that are written, read and removed beside its event loop.

The pool is synchronous and must not wait for a disk. So what it spills is written later, by a thread;
what a lookup will need is read ahead, before the lookup; and only what was not is read in the midst of it.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from prfaas_lab.engine.kept import Kept
from prfaas_lab.kvcache import CacheError, DirectoryTier
from prfaas_lab.model.layout import SegmentKey

_HEAD, _SEGMENT = struct.Struct("<BQI"), struct.Struct("<HHII")
UNWRITTEN_BYTES = 64 * 2**20
"""What may wait to be written, in memory and beyond the budget: then the disk is too slow to spill to."""


class _Unwritten(NamedTuple):
    """What waits to be written. The `number` tells it from what had the same key before."""

    number: int
    payload: Kept
    size_bytes: int


class SpillTier:
    """A `DirectoryTier` behind two threads of its own: one writes and removes in order, one reads."""

    def __init__(self, path: Path, budget_bytes: int, *, unwritten_bytes: int = UNWRITTEN_BYTES) -> None:
        self.budget_bytes, self.used_bytes = budget_bytes, 0
        self._files = DirectoryTier(path, budget_bytes, encode=encode, decode=decode)
        self._most_unwritten_bytes, self._unwritten_bytes = unwritten_bytes, 0
        self._sizes: dict[int, int] = {}
        self._unwritten: dict[int, _Unwritten] = {}
        self._numbers = count()
        self._wanted: Counter[int] = Counter()
        """By how many lookups that are about to happen."""
        self._read: dict[int, Kept] = {}
        self._lock = Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="spill")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reload")

    def put(self, key: int, payload: Kept, size_bytes: int) -> None:
        """Raises CacheError when the disk has fallen too far behind. That a file could not be written
        shows when it is asked for."""
        assert key not in self._sizes
        with self._lock:
            if self._unwritten_bytes + size_bytes > self._most_unwritten_bytes:
                raise CacheError("cannot spill: the disk is too slow", remedy="give the cache more memory")
            waiting = self._unwritten[key] = _Unwritten(next(self._numbers), payload, size_bytes)
            self._unwritten_bytes += size_bytes
        self._sizes[key] = size_bytes
        self.used_bytes += size_bytes
        self._writer.submit(self._write, key, waiting.number)

    def get(self, key: int) -> Kept:
        with self._lock:
            waiting, found = self._unwritten.get(key), self._read.get(key)
        if waiting is not None:
            return waiting.payload
        return self._files.get(key) if found is None else found

    def drop(self, key: int) -> None:
        self.used_bytes -= self._sizes.pop(key)
        with self._lock:
            self._read.pop(key, None)
            self._forget_unwritten(key)
        self._writer.submit(self._remove, key)

    async def read_ahead(self, keys: Collection[int]) -> None:
        """Read what a lookup is about to need. To be `let_go` once, however this ends."""
        with self._lock:
            self._wanted.update(keys)
            absent = [key for key in keys if key not in self._unwritten and key not in self._read]
        if absent:
            await asyncio.get_running_loop().run_in_executor(self._reader, self._read_all, absent)

    def let_go(self, keys: Collection[int]) -> None:
        """Keep no longer in memory what was read ahead, unless another lookup wants it too."""
        with self._lock:
            self._wanted.subtract(keys)
            for key in keys:
                if not self._wanted[key]:
                    del self._wanted[key]
                    self._read.pop(key, None)

    def close(self) -> None:
        """Stop, and remove every file."""
        for worker in (self._writer, self._reader):
            worker.shutdown(cancel_futures=True)
        self._files.close()
        self._sizes.clear()
        self._unwritten.clear()
        self._wanted.clear()
        self._read.clear()
        self.used_bytes = self._unwritten_bytes = 0

    # -- in the threads --

    def _write(self, key: int, number: int) -> None:
        with self._lock:
            waiting = self._unwritten.get(key)
        if waiting is None or waiting.number != number:
            return  # dropped before it was written, and perhaps put again: that is another turn's
        try:
            self._files.put(key, waiting.payload, waiting.size_bytes)
        except CacheError:
            return  # the file is not there: found out, and forgotten, when it is asked for
        finally:
            with self._lock:
                if self._unwritten.get(key) is waiting:
                    self._forget_unwritten(key)
                    if key in self._wanted:
                        self._read[key] = waiting.payload

    def _forget_unwritten(self, key: int) -> None:
        waiting = self._unwritten.pop(key, None)
        if waiting is not None:
            self._unwritten_bytes -= waiting.size_bytes

    def _remove(self, key: int) -> None:
        if key in self._files:
            self._files.drop(key)

    def _read_all(self, keys: Collection[int]) -> None:
        for key in keys:
            if key not in self._wanted:
                continue  # whoever asked has gone
            try:
                found = self._files.get(key)
            except CacheError:
                continue  # the lookup meets it again, and drops it
            with self._lock:
                if key in self._wanted:
                    self._read[key] = found


def encode(kept: Kept) -> bytes:
    """A payload as one piece, with the checksum of the time when it was taken in."""
    parts = [_HEAD.pack(kept.decoded, kept.digest, len(kept.segments))]
    parts += [_SEGMENT.pack(k.layer, k.part, k.chunk, segment.nbytes) for k, segment in kept.segments]
    return b"".join([*parts, *(segment for _, segment in kept.segments)])


def decode(body: bytes) -> Kept:
    """The opposite of `encode`. Raises CacheError for what that did not write."""
    try:
        decoded, digest, count = _HEAD.unpack_from(body)
        heads = [_SEGMENT.unpack_from(body, _HEAD.size + n * _SEGMENT.size) for n in range(count)]
    except struct.error as error:
        raise CacheError("the file is cut short") from error
    at, view, segments = _HEAD.size + count * _SEGMENT.size, memoryview(body), []
    for layer, part, chunk, size in heads:
        segments.append((SegmentKey(layer, part, chunk), view[at : at + size]))
        at += size
    return Kept(segments, decoded=bool(decoded), digest=digest)
