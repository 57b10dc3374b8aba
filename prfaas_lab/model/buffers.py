"""Where a request's KVCache lands: one buffer per tensor, filled segment by segment in any order.

No torch here: the receiver of a paced engine fills the same buffers, and only never computes on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prfaas_lab.errors import EngineError
from prfaas_lab.model.layout import CacheLayout, SegmentKey


class SegmentRefused(EngineError, ValueError):
    """A segment that this request's cache has no place for: unknown, of the wrong size, or twice.

    Also a ValueError, by which a sink refuses in the transport.
    """


def chunk_spans(tokens: int, chunk_tokens: int, *, start: int = 0) -> Iterator[tuple[int, int]]:
    """The one chunk schedule that prefill, transfer and reference share: (first, end) of each chunk.

    Chunks begin at multiples of `chunk_tokens`; so must `start`, the tokens already computed.
    """
    assert start % chunk_tokens == 0, f"{start} is not a chunk boundary of {chunk_tokens}"
    for first in range(start, tokens, chunk_tokens):
        yield first, min(first + chunk_tokens, tokens)


def segment_keys(layout: CacheLayout, tokens: int) -> Iterator[SegmentKey]:
    """Every segment of a prompt's KVCache, in the order in which prefill emits them."""
    last = len(list(chunk_spans(tokens, layout.chunk_tokens))) - 1
    for chunk in range(last + 1):
        for index, layer in enumerate(layout.layers):
            for part, tensor in enumerate(layer.parts):
                if tensor.kind == "growing" or chunk == last:
                    yield SegmentKey(index, part, chunk)


class IncomingCache:
    """The memory of one request's KVCache at its receiver.

    `destination(key, nbytes)` is where a segment's bytes go; `arrived(key)` says that they are there
    and checked; `all_arrived()` says so of everything that was given a destination. Until it has arrived
    a segment may be asked for again, since a connection can break in the middle of one. `complete` holds
    exactly when every segment has arrived.
    """

    def __init__(self, layout: CacheLayout, tokens: int) -> None:
        assert tokens > 0, "a prompt has at least one token"
        self.layout, self.tokens = layout, tokens
        self._memory = [
            [bytearray(p.unit_bytes * (tokens if p.kind == "growing" else 1)) for p in layer.parts]
            for layer in layout.layers
        ]
        self._missing = set(segment_keys(layout, tokens))
        self._expected: set[SegmentKey] = set()
        self.held: set[SegmentKey] = set()
        """What did not have to be sent: its receiver had it already."""
        self._missing_bytes = self.nbytes

    @property
    def nbytes(self) -> int:
        """Size of the whole cache."""
        return self.layout.request_bytes(self.tokens)

    @property
    def complete(self) -> bool:
        return not self._missing

    @property
    def missing_bytes(self) -> int:
        """Bytes of the segments that have not arrived."""
        return self._missing_bytes

    def missing(self) -> list[SegmentKey]:
        """What has not arrived, in order; a sender that resumes needs to send just this."""
        return sorted(self._missing)

    def destination(self, key: SegmentKey, nbytes: int) -> memoryview:
        """Writable memory of exactly `nbytes` for a segment. Raises `SegmentRefused`."""
        self._check_missing(key)
        expected = self.layout.segment_bytes(key, self.tokens)
        if nbytes != expected:
            raise SegmentRefused(f"{key} has {nbytes} bytes, its layout says {expected}")
        self._expected.add(key)
        part = self.layout.part(key)
        first = key.chunk * self.layout.chunk_tokens * part.unit_bytes if part.kind == "growing" else 0
        return memoryview(self._memory[key.layer][key.part])[first : first + nbytes]

    def arrived(self, key: SegmentKey) -> None:
        """A segment's bytes lie at its destination, and their checksum holds."""
        self._check_missing(key)
        self._missing.discard(key)
        self._expected.discard(key)
        self._missing_bytes -= self.layout.segment_bytes(key, self.tokens)

    def all_arrived(self) -> None:
        """The transfer ended well: every segment that was given a destination lies there, checked.

        Segments that were never asked for stay missing, so that a transfer that ends short shows.
        """
        for key in list(self._expected):
            self.arrived(key)

    def part(self, layer: int, part: int) -> bytearray:
        """The bytes of one tensor: [tokens, *shape] when growing, [*shape] when state."""
        return self._memory[layer][part]

    def _check_missing(self, key: SegmentKey) -> None:
        if key in self._missing:
            return
        known = key in set(segment_keys(self.layout, self.tokens))
        what = "came twice" if known else f"is no segment of a prompt of {self.tokens} tokens"
        raise SegmentRefused(f"{key} {what}")


@dataclass(frozen=True, slots=True)
class Produced:
    """What decoding computed of a sequence up to a chunk boundary: its growing cache from the boundary
    `first_token` on, the tail of its prompt included, and the states after `tokens`."""

    first_token: int
    tokens: int
    segments: tuple[tuple[SegmentKey, memoryview], ...]
