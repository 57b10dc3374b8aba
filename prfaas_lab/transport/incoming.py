"""One transfer as its receiver sees it: where its bytes go, which have arrived, when it is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from prfaas_lab.errors import TransportError
from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.transport.codec import Codec
from prfaas_lab.transport.errors import CorruptSegment, SegmentRefused, TransferCancelled
from prfaas_lab.transport.frames import Key, Piece, Refusal
from prfaas_lab.transport.limits import Limits

Sink = Callable[[SegmentKey, int], memoryview]
"""(key, bytes of the whole segment) -> its writable destination; ValueError or LookupError refuse it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A transfer that lies complete and checked in its destination. Times are the receiver's clock."""

    bytes: int
    wire_bytes: int
    """What they took on the wire, encoded; as many if nothing was."""
    segments: int
    first_byte_at: float
    last_byte_at: float
    retried: int
    """Frames that arrived damaged or twice."""


class Carrier(Protocol):
    """A connection that carries frames of this transfer."""

    def divert(self, *, refetch: bool) -> None:
        """The rest of the frame being read must not be put where it was going."""

    def ended(self, incoming: Incoming, number: int, refusal: Refusal | None, reason: str) -> None:
        """The transfer is whole (no refusal) or over; tell the sender."""


class _Segment:
    """A segment of which a part has arrived or is arriving. Its pieces are named by their offset.

    They go to `destination`: the place that the sink gave, or if the segment is encoded to memory that
    is shorter than its place, to be decoded from there.
    """

    __slots__ = ("arrived", "arrived_bytes", "destination", "place", "placing")

    def __init__(self, place: memoryview, wire_bytes: int) -> None:
        self.place = place
        self.destination = place if wire_bytes == len(place) else memoryview(bytearray(wire_bytes))
        self.arrived: dict[int, int] = {}
        """Offset -> length."""
        self.placing: dict[int, Carrier] = {}
        self.arrived_bytes = 0

    @property
    def encoded(self) -> bool:
        return self.destination is not self.place

    @property
    def has_no_overlap(self) -> bool:
        end = 0
        for offset, length in sorted(self.arrived.items()):
            if offset != end:
                return False
            end += length
        return True


class Incoming:
    """A transfer that is expected. Await `done`, or `cancel`."""

    def __init__(
        self, transfer_id: str, sink: Sink, limits: Limits, clock: Callable[[], float], now: float,
        forget: Callable[[Incoming, Refusal | None], None], codec: Codec | None,
    ) -> None:  # fmt: skip
        self.transfer_id = transfer_id
        self._codec = codec
        self._sink, self._limits, self._clock, self._forget = sink, limits, clock, forget
        self._partial: dict[Key, _Segment] = {}
        self._whole: set[Key] = set()
        self._expected: tuple[int, int] | None = None  # segments, bytes: known from FINISH
        self._ended = asyncio.Event()
        self._error: TransportError | None = None
        self._first_byte_at = self._last_byte_at = 0.0
        self.arrived_bytes = self._placed_bytes = 0
        self.retried = 0
        self.progress_at = now
        self.carriers: dict[Carrier, int] = {}
        self.begun = False

    async def done(self) -> Received:
        """Wait for the whole transfer. Raises PeerLost, TransferTimeout, SegmentRefused, CorruptSegment
        or TransferCancelled; what lies in the destination is then worth nothing."""
        await self._ended.wait()  # bounded by the receiver's deadlines, which end the transfer
        if self._error is not None:
            raise self._error
        return Received(
            bytes=self._placed_bytes,
            wire_bytes=self.arrived_bytes,
            segments=len(self._whole),
            first_byte_at=self._first_byte_at,
            last_byte_at=self._last_byte_at,
            retried=self.retried,
        )

    def cancel(self) -> None:
        """Stop: nothing more is written to the destinations from here on, and the sender is told."""
        error = TransferCancelled(f"transfer {self.transfer_id} was cancelled by its receiver")
        self.end(error, Refusal.CANCELLED)

    # -- what its connections call -------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        return self._ended.is_set()

    def attach(self, carrier: Carrier, number: int, now: float) -> None:
        self.begun, self.progress_at = True, now
        self.carriers[carrier] = number

    def detach(self, carrier: Carrier, now: float) -> None:
        """The connection is gone."""
        self.carriers.pop(carrier, None)
        self.progress_at = now

    def place(self, carrier: Carrier, pieces: list[Piece]) -> list[memoryview]:
        """Where the pieces of a frame go. Raises SegmentRefused."""
        if not self._first_byte_at:
            self._first_byte_at = self._clock()
        return [self._place(carrier, *piece) for piece in pieces]

    def arrived(self, carrier: Carrier, pieces: list[Piece], places: list[memoryview], now: float) -> None:
        """A frame lies checked in the places that `place` gave."""
        self.progress_at = now
        partial = self._partial
        for (layer, part, chunk, _, total, offset, length), place in zip(pieces, places, strict=True):
            key = layer, part, chunk
            segment = partial.get(key)
            if segment is None or offset in segment.arrived:
                continue  # it came twice, or its segment has just turned out to be no good
            filler = segment.placing.pop(offset, None)
            if filler is not carrier:
                if filler is not None:
                    filler.divert(refetch=True)
                segment.destination[offset : offset + length] = place
            segment.arrived[offset] = length
            segment.arrived_bytes += length
            self.arrived_bytes += length
            if segment.arrived_bytes >= total:
                self._complete(key, segment)
        self._complete_if_whole()

    def spoiled(self, carrier: Carrier, pieces: list[Piece]) -> None:
        """A frame's payload is not what was sent."""
        self.retried += 1
        self.displaced(carrier, pieces)

    def displaced(self, carrier: Carrier, pieces: list[Piece]) -> None:
        """A frame will not arrive at its places, which are free again."""
        for piece in pieces:
            segment = self._partial.get(piece[:3])
            if segment is not None and segment.placing.get(piece.offset) is carrier:
                del segment.placing[piece.offset]

    def finished(self, segments: int, size_bytes: int, now: float) -> None:
        """The sender said what the whole transfer is."""
        self.progress_at = now
        if self._expected not in (None, (segments, size_bytes)):
            error = SegmentRefused(f"{self.transfer_id}: its sender ended it twice, differently")
            self.end(error, Refusal.SEGMENT)
            return
        self._expected = segments, size_bytes
        self._complete_if_whole()

    def end(self, error: TransportError | None, refusal: Refusal | None) -> None:
        """Once: connections let go of the destinations, the sender is told, `done` returns or raises."""
        if self.is_over:
            return
        self._error = error
        self._ended.set()
        self._partial.clear()
        for carrier, number in list(self.carriers.items()):
            carrier.ended(self, number, refusal, str(error or ""))
        self.carriers.clear()
        self._forget(self, refusal)

    # ------------------------------------------------------------------------------------------

    def _place(
        self, carrier: Carrier, layer: int, part: int, chunk: int, size: int, total: int, offset: int,
        length: int,
    ) -> memoryview:  # fmt: skip
        key = layer, part, chunk
        if key in self._whole:
            return self._again(length)
        segment = self._partial.get(key) or self._begin(key, size, total)
        whole = len(segment.destination)
        if (
            (size, total) != (len(segment.place), whole)
            or offset + length > whole
            or (length == 0) != (whole == 0)
        ):
            raise SegmentRefused(
                f"{SegmentKey(*key)}: bytes {offset}+{length} of {total} do not fit its {whole}"
            )
        if offset in segment.arrived or offset in segment.placing:
            return self._again(length)  # two connections never write the same memory
        segment.placing[offset] = carrier
        return segment.destination[offset : offset + length] if length < total else segment.destination

    def _again(self, length: int) -> memoryview:
        """Memory for a piece that is here, or arriving on another connection, which may be slower."""
        self.retried += 1
        return memoryview(bytearray(length))

    def _begin(self, name: Key, size: int, total: int) -> _Segment:
        key = SegmentKey(*name)
        if size > self._limits.max_segment_bytes:
            raise SegmentRefused(f"{key} has {size} bytes, the limit is {self._limits.max_segment_bytes}")
        if total != size and (self._codec is None or not 0 < total < size):
            raise SegmentRefused(f"{key} has {size} bytes and came as {total}, which was not agreed on")
        if len(self._whole) + len(self._partial) >= self._limits.max_segments:
            raise SegmentRefused(
                f"{self.transfer_id} has over {self._limits.max_segments} segments, the limit"
            )
        try:
            place = memoryview(self._sink(key, size)).cast("B")
        except (ValueError, LookupError) as error:
            where = f"{key} of {size} bytes"
            raise SegmentRefused(f"{where} has no place in {self.transfer_id}: {error}") from error
        if len(place) != size or place.readonly:
            raise SegmentRefused(f"{key}: its place has {len(place)} bytes, {size} are coming")
        segment = self._partial[name] = _Segment(place, total)
        return segment

    def _complete(self, key: Key, segment: _Segment) -> None:
        if len(segment.arrived) > 1 and not segment.has_no_overlap:
            self.end(SegmentRefused(f"{SegmentKey(*key)}: its pieces overlap"), Refusal.SEGMENT)
            return
        if segment.encoded:
            assert self._codec is not None, "refused when it began"
            try:
                self._codec.decode(SegmentKey(*key), segment.destination, segment.place)
            except CorruptSegment as error:
                self.end(error, Refusal.CORRUPT)
                return
        self._placed_bytes += len(segment.place)
        self._whole.add(key)
        del self._partial[key]
        self._last_byte_at = self._clock()

    def _complete_if_whole(self) -> None:
        if self.is_over or self._expected is None or self._partial or len(self._whole) < self._expected[0]:
            return
        if (len(self._whole), self.arrived_bytes) == self._expected:
            self.end(None, None)
        else:
            error = SegmentRefused(f"{self.transfer_id}: more arrived than its sender says it sent")
            self.end(error, Refusal.SEGMENT)
