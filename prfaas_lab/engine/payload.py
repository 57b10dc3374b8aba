"""What a paced engine sends instead of KVCache: bytes that only the right segment of a request has."""

from __future__ import annotations

import random
from collections.abc import Iterator

from prfaas_lab.model.buffers import IncomingCache
from prfaas_lab.model.layout import CacheLayout, SegmentKey

_PLACES = 65_537
"""Where in the block a segment may begin; a prime, so that neighbouring keys lie far apart."""


class Pattern:
    """Segments are views into one block of seeded noise: none is ever generated or copied.

    Both ends of a transfer make the same block from the layout. `nonce` tells requests apart; the
    receiver learns it as the first token.
    """

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout
        parts = [part for layer in layout.layers for part in layer.parts]
        longest = max(
            part.unit_bytes * (layout.chunk_tokens if part.kind == "growing" else 1) for part in parts
        )
        noise = random.Random(layout.fingerprint)
        self._block = memoryview(noise.randbytes(longest + _PLACES))

    def segment(self, nonce: int, key: SegmentKey, size_bytes: int) -> memoryview:
        """The bytes of one segment."""
        place = (nonce + 31_337 * key.chunk + 1_009 * key.layer + 17 * key.part) % _PLACES
        return self._block[place : place + size_bytes]

    def damaged(self, nonce: int, incoming: IncomingCache) -> list[SegmentKey]:
        """The segments of a complete cache that are not what the sender of `nonce` sent; those that the
        receiver held before came with another request, and were checked when they were found."""
        return [
            key for key, arrived in _segments(self._layout, incoming)
            if key not in incoming.held and arrived != self.segment(nonce, key, len(arrived))
        ]  # fmt: skip


def _segments(layout: CacheLayout, incoming: IncomingCache) -> Iterator[tuple[SegmentKey, bytearray]]:
    for index, layer in enumerate(layout.layers):
        for number, part in enumerate(layer.parts):
            memory = incoming.part(index, number)
            if part.kind == "state":
                chunk = (incoming.tokens - 1) // layout.chunk_tokens
                yield SegmentKey(index, number, chunk), memory
                continue
            size = part.unit_bytes * layout.chunk_tokens
            for chunk, first in enumerate(range(0, len(memory), size)):
                yield SegmentKey(index, number, chunk), memory[first : first + size]
