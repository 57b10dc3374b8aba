"""What a pool keeps for an engine: segments of KVCache as they cross the wire, with their checksum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import xxhash

from prfaas_lab.model.layout import CacheLayout, SegmentKey

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


def by_boundary(
    layout: CacheLayout, segments: Iterable[Segment]
) -> tuple[dict[int, list[Segment]], dict[int, list[Segment]]]:
    """Segments of blocks by their first token, and of snapshots by the tokens they stand for."""
    width = layout.chunk_tokens
    blocks: dict[int, list[Segment]] = {}
    snapshots: dict[int, list[Segment]] = {}
    for key, segment in segments:
        if layout.part(key).kind == "growing":
            blocks.setdefault(key.chunk * width, []).append((key, segment))
        else:
            snapshots.setdefault((key.chunk + 1) * width, []).append((key, segment))
    return blocks, snapshots


def to_keep(found: Mapping[int, Sequence[Segment]], decoded_from: int | None = None) -> dict[int, Kept]:
    """Payloads for a pool. Blocks from `decoded_from` on were completed by a decode engine."""
    return {
        tokens: Kept(segments, decoded=decoded_from is not None and tokens >= decoded_from)
        for tokens, segments in found.items()
    }
