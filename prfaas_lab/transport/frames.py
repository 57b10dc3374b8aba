"""The frames of the data connections, sans I/O: bytes in, frames out.

Every frame is a fixed header with a checksum of its own, followed by `length` bytes. A DATA frame
carries pieces of any number of segments of one transfer: a table of them, then their bytes one after
the other, so that many small segments cost no more than one large one. A damaged header or table
cannot be trusted for anything, least of all for where bytes go: it ends the connection. A damaged
payload ends nothing: it does not match the header's `value`, and is fetched again.

    header: version u8, kind u8, pieces u16, transfer u32, length u32, extra u32, value u64, check u32
    piece:  layer u16, part u16, chunk u32, size u32, total u32, offset u32, length u32

Meaning of the header's fields by kind:
    ATTACH    transfer: the number that stands for this transfer on this connection; payload: its id
    DATA      pieces: entries of the table; extra: xxh32 of the table; value: xxh3-64 of the bytes
    FINISH    extra: segments of the transfer; value: its bytes
    ACK       value: DATA frames of this connection dealt with so far
    NACK      value: index of the DATA frame (of this connection) that has to be sent again
    REJECT    extra: a `Refusal`; payload: the reason in words
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

import xxhash

from prfaas_lab.transport.errors import FrameError

VERSION = 2
_BODY = struct.Struct("!BBHIIIQ")
_CHECK = struct.Struct("!I")
_PIECE = struct.Struct("!HHIIIII")
HEADER_BYTES, PIECE_BYTES = _BODY.size + _CHECK.size, _PIECE.size
MAX_CONTROL_BYTES = 1024
"""Longest payload of any frame but DATA."""
MAX_PIECES = 256
"""Pieces in one frame; with a buffer each, one system call takes them all (the kernel's limit is 1024)."""
STAGING_BYTES = 8 * 1024
"""What is read beyond the current payload: the next header and table, or many small frames at once."""

MAX_U16, MAX_U32 = 2**16 - 1, 2**32 - 1
Bytes = memoryview | bytes


class Kind(IntEnum):
    ATTACH = 1
    DATA = 2
    FINISH = 3
    CANCEL = 4
    ALIVE = 5
    ACK = 6
    NACK = 7
    REJECT = 8
    COMPLETE = 9


class Refusal(IntEnum):
    """Why a receiver wants no more of a transfer."""

    UNKNOWN = 1
    SEGMENT = 2
    CANCELLED = 3
    TIMEOUT = 4
    CORRUPT = 5


class Header(NamedTuple):
    version: int
    kind: int
    pieces: int
    transfer: int
    length: int
    extra: int
    value: int


Key = tuple[int, int, int]
"""Layer, part and chunk: a `SegmentKey` as it goes over the wire, and cheap to look up."""


class Piece(NamedTuple):
    """`length` bytes from `offset` of the `total` that a segment of `size` takes on the wire: fewer than
    its size if it is encoded, as many if it is not."""

    layer: int
    part: int
    chunk: int
    size: int
    total: int
    offset: int
    length: int


def encode(
    kind: int, *, transfer: int = 0, pieces: int = 0, length: int = 0, extra: int = 0, value: int = 0
) -> bytes:
    """A frame's header; `length` bytes follow it."""
    body = _BODY.pack(VERSION, kind, pieces, transfer, length, extra, value)
    return body + _CHECK.pack(xxhash.xxh32_intdigest(body))


def encode_control(kind: int, payload: bytes = b"", *, transfer: int = 0, extra: int = 0) -> bytes:
    """A whole frame with a short payload (ATTACH, REJECT), cut to what the peer accepts."""
    payload = payload[:MAX_CONTROL_BYTES]
    return encode(kind, transfer=transfer, length=len(payload), extra=extra) + payload


def encode_data(transfer: int, pieces: Sequence[Piece], payloads: Sequence[Bytes]) -> bytes:
    """Header and table of a DATA frame; the payloads of its pieces follow, in order."""
    table = b"".join([_PIECE.pack(*piece) for piece in pieces])
    length = len(table) + sum([piece.length for piece in pieces])
    header = encode(
        Kind.DATA, transfer=transfer, pieces=len(pieces), length=length, extra=xxhash.xxh32_intdigest(table),
        value=digest(payloads),
    )  # fmt: skip
    return header + table


def digest(payloads: Sequence[Bytes]) -> int:
    """What a DATA frame's `value` must be: xxh3-64 of the payloads in a row."""
    if len(payloads) == 1:
        return int(xxhash.xxh3_64_intdigest(payloads[0]))
    state = xxhash.xxh3_64()
    for payload in payloads:
        state.update(payload)
    return int(state.intdigest())


def decode_header(raw: memoryview) -> Header:
    """Raises FrameError for anything that is not a whole, undamaged header of this version."""
    body = raw[: _BODY.size]
    if len(raw) != HEADER_BYTES or _CHECK.unpack(raw[_BODY.size :])[0] != xxhash.xxh32_intdigest(body):
        raise FrameError("the peer sent bytes that are no frame", remedy="is the port another service's?")
    header = Header._make(_BODY.unpack(body))
    if header.version != VERSION:
        raise FrameError(f"the peer sent a frame of version {header.version}, this is version {VERSION}")
    return header


def decode_table(header: Header, raw: memoryview) -> list[Piece]:
    """Raises FrameError when the table is damaged, or does not add up to the frame's length."""
    if xxhash.xxh32_intdigest(raw) != header.extra:
        raise FrameError("the peer sent a table of pieces that is damaged")
    pieces = list(map(Piece._make, _PIECE.iter_unpack(raw)))
    if sum([piece.length for piece in pieces]) + len(raw) != header.length:
        raise FrameError("the peer sent a table of pieces that does not add up")
    return pieces


class FrameSink(Protocol):
    """Who takes what a `Decoder` finds."""

    def place(self, header: Header, pieces: list[Piece]) -> list[memoryview]:
        """Where the pieces of a DATA frame go: for each, exactly `length` writable bytes."""

    def data(self, header: Header, places: list[memoryview]) -> None:
        """A whole DATA frame lies in the places that `place` gave (or `divert` put in their stead)."""

    def control(self, header: Header, payload: bytes) -> None:
        """A whole frame of another kind has arrived."""


class Decoder:
    """Finds frames in a stream of bytes, and says where the next bytes should be put.

    The payload of DATA goes straight where `sink.place` says; `buffers` offers those places first
    and a small staging area last, so that one read takes a payload and the header after it, or
    many small frames at once. The staging area is all the memory it holds.
    """

    def __init__(self, sink: FrameSink, *, max_payload_bytes: int) -> None:
        self._sink = sink
        self._max_payload_bytes = max_payload_bytes
        self._staging = memoryview(bytearray(STAGING_BYTES))
        self._start = self._end = 0
        self._header: Header | None = None  # read, and its table or payload is not
        self._filling: Header | None = None  # a DATA frame whose payload is arriving
        self._places: list[memoryview] = []
        self._missing: list[memoryview] = []  # what of the places is still to be filled, in reverse

    @property
    def idle(self) -> bool:
        """Between two frames: nothing of the next one has arrived."""
        return self._filling is None and self._header is None and self._start == self._end

    @property
    def missing_bytes(self) -> int:
        """What the payload that is arriving still lacks; 0 between payloads."""
        return sum(map(len, self._missing))

    def buffers(self) -> list[memoryview]:
        """Where to put the bytes that come next, in this order. Never empty."""
        return [*reversed(self._missing), self._staging[self._end :]]

    def received(self, count: int) -> None:
        """`count` bytes were put into `buffers()`. Raises FrameError; the connection is then useless."""
        if self._filling is not None:
            count -= self._fill(count)
        self._end += count
        while self._step():
            pass
        self._compact()

    def feed(self, incoming: Bytes) -> None:
        """`received` for bytes that lie elsewhere: copied through `buffers()`."""
        rest = memoryview(incoming)
        while rest:
            count = 0
            for buffer in self.buffers():
                piece = rest[: len(buffer)]
                buffer[: len(piece)] = piece
                rest, count = rest[len(piece) :], count + len(piece)
            self.received(count)

    def divert(self, scratch: memoryview) -> None:
        """The rest of the current payload goes to `scratch`, which is as long as any payload."""
        missing_bytes = self.missing_bytes
        self._places = []
        self._missing = [scratch[:missing_bytes]] if missing_bytes else []

    def _step(self) -> bool:
        """Use what is staged for one header, table or payload; False when more bytes are needed."""
        if self._filling is not None:
            return self._fill_from_staging()
        if self._header is None:
            if self._end - self._start < HEADER_BYTES:
                return False
            self._header = self._checked(decode_header(self._staged(HEADER_BYTES)))
        header = self._header
        size = header.pieces * PIECE_BYTES if header.kind == Kind.DATA else header.length
        if self._end - self._start < size:
            return False
        self._header = None
        if header.kind == Kind.DATA:
            self._begin(header, decode_table(header, self._staged(size)))
        else:
            self._sink.control(header, bytes(self._staged(size)))
        return True

    def _checked(self, header: Header) -> Header:
        if header.kind == Kind.DATA:
            size = header.length - header.pieces * PIECE_BYTES
            if not 0 < header.pieces <= MAX_PIECES or not 0 <= size <= self._max_payload_bytes:
                raise FrameError(f"the peer announced {size} bytes in {header.pieces} pieces in one frame")
        elif header.length > MAX_CONTROL_BYTES:
            raise FrameError(f"the peer announced a control frame of {header.length} bytes")
        return header

    def _staged(self, count: int) -> memoryview:
        self._start += count
        return self._staging[self._start - count : self._start]

    def _begin(self, header: Header, pieces: list[Piece]) -> None:
        self._filling = header
        self._places = self._sink.place(header, pieces)
        assert [len(place) for place in self._places] == [piece.length for piece in pieces]
        self._missing = [place for place in reversed(self._places) if place]
        if not self._missing:
            self._finish(header)

    def _fill(self, count: int) -> int:
        """Bytes of `count` that went into the places; the frame is passed on once they are full."""
        left, missing = count, self._missing
        while missing and left >= len(missing[-1]):
            left -= len(missing.pop())
        if missing:
            missing[-1] = missing[-1][left:]
            return count
        assert self._filling is not None
        self._finish(self._filling)
        return count - left

    def _fill_from_staging(self) -> bool:
        staged = self._staging[self._start : self._end]
        used = 0
        for place in reversed(self._missing):
            piece = staged[used : used + len(place)]
            place[: len(piece)] = piece
            used += len(piece)
            if used == len(staged):
                break
        self._start += used
        self._fill(used)
        return self._filling is None

    def _finish(self, header: Header) -> None:
        places, self._places = self._places, []
        self._filling = None
        self._sink.data(header, places)

    def _compact(self) -> None:
        left = self._end - self._start
        if self._start and left:
            self._staging[:left] = bytes(self._staging[self._start : self._end])
        self._start, self._end = 0, left
