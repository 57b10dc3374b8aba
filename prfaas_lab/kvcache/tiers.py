"""Where cached bytes lie: memory, and a second tier on disk. A tier stores; it finds nothing.

Keys are serial numbers the pool gives out. A tier counts the bytes it was told, which are the
layout's, so that a simulated pool may keep no payload at all and still fill up like a real one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import xxhash

from prfaas_lab.kvcache.blocks import CacheError

Payload = Any
"""What an engine keeps: tensors, bytes, or None in a simulation. The pool never looks inside."""


class Tier(Protocol):
    """A bounded store of payloads. `put` may be called only with at least `size_bytes` free."""

    budget_bytes: int
    used_bytes: int

    def put(self, key: int, payload: Payload, size_bytes: int) -> None: ...

    def get(self, key: int) -> Payload:
        """The payload as it was put; raises CacheError when it can no longer be read."""

    def drop(self, key: int) -> None: ...

    def close(self) -> None: ...


class MemoryTier:
    """Payloads by reference. Also a stand-in for the disk where only decisions are simulated."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._held: dict[int, tuple[Payload, int]] = {}

    def put(self, key: int, payload: Payload, size_bytes: int) -> None:
        assert key not in self._held
        assert self.used_bytes + size_bytes <= self.budget_bytes
        self._held[key] = (payload, size_bytes)
        self.used_bytes += size_bytes

    def get(self, key: int) -> Payload:
        return self._held[key][0]

    def drop(self, key: int) -> None:
        self.used_bytes -= self._held.pop(key)[1]

    def close(self) -> None:
        self._held.clear()
        self.used_bytes = 0


class DirectoryTier:
    """One file per payload in a directory of its own; what is read back is verified.

    A file is a 16-byte xxh3-128 of the body, then the body: it catches damage, not malice (the
    directory is created private to the user). `encode` and `decode` turn a payload into bytes and
    back; the default takes bytes. Calls block for the length of one file: where an event loop must not
    wait, `engine.spill` makes them in threads.
    """

    def __init__(
        self,
        path: Path,
        budget_bytes: int,
        *,
        encode: Callable[[Payload], bytes] = bytes,
        decode: Callable[[bytes], Payload] = bytes,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._path, self._encode, self._decode = path, encode, decode
        self._sizes: dict[int, int] = {}
        try:
            self._made = not path.exists()
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            strange = any(path.iterdir())
        except OSError as error:
            raise CacheError(
                f"the cache's directory cannot be made: {error.strerror}",
                where=str(path),
                remedy="make room there, point TMPDIR at a disk that has some, or leave out cache.disk",
            ) from error
        if strange:
            raise CacheError("the directory is not empty", where=str(path), remedy="give the cache its own")

    def put(self, key: int, payload: Payload, size_bytes: int) -> None:
        """Raises CacheError when the file cannot be written (a full disk); nothing is held then."""
        assert key not in self._sizes
        assert self.used_bytes + size_bytes <= self.budget_bytes
        body = self._encode(payload)
        try:
            self._file(key).write_bytes(xxhash.xxh3_128_digest(body) + body)
        except OSError as error:
            self._file(key).unlink(missing_ok=True)
            raise CacheError(f"cannot spill: {error.strerror}", where=str(self._path)) from error
        self._sizes[key] = size_bytes
        self.used_bytes += size_bytes

    def get(self, key: int) -> Payload:
        try:
            raw = self._file(key).read_bytes()
        except OSError as error:
            raise CacheError(f"cannot read back: {error.strerror}", where=str(self._file(key))) from error
        body = raw[16:]
        if xxhash.xxh3_128_digest(body) != raw[:16]:
            raise CacheError("the bytes are damaged", where=str(self._file(key)))
        return self._decode(body)

    def __contains__(self, key: int) -> bool:
        return key in self._sizes

    def drop(self, key: int) -> None:
        self.used_bytes -= self._sizes.pop(key)
        self._file(key).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove what this tier wrote, and the directory if it made it and nothing else is there."""
        for key in tuple(self._sizes):
            self.drop(key)
        if self._made and not any(self._path.iterdir()):
            self._path.rmdir()

    def _file(self, key: int) -> Path:
        return self._path / f"{key:016x}.kv"
