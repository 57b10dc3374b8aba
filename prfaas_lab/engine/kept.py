"""What a pool keeps for an engine: segments of KVCache as they cross the wire, with their checksum."""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from prfaas_lab.model.layout import SegmentKey

Segment = tuple[SegmentKey, memoryview]


class Kept:
    """The payload of a block or a snapshot, and a checksum of what it was when it was taken in."""

    __slots__ = ("decoded", "digest", "segments")

    def __init__(
        self, segments: Sequence[Segment], *, decoded: bool = False, digest: int | None = None
    ) -> None:
        """`decoded`: computed by a decode engine, at least in part. `digest` is that of the time when it
        was taken in, unless that is now."""
        self.segments, self.decoded = tuple(segments), decoded
        self.digest = self._checksum() if digest is None else digest

    @property
    def intact(self) -> bool:
        return self._checksum() == self.digest

    def _checksum(self) -> int:
        digest = xxhash.xxh3_64()
        for _, segment in self.segments:
            digest.update(segment)
        return digest.intdigest()
