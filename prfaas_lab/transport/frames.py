"""The frames of the data connections, sans I/O: bytes in, frames out.

Every frame is a fixed header with a checksum of its own, followed by `length` bytes. A damaged
header cannot be trusted for anything, its length least of all: it ends the connection. A damaged
payload ends nothing: it does not match the header's `value`, and is fetched again.

    version kind layer part - chunk transfer length total offset value check
       u8    u8   u16  u16 u16 u32    u32     u32    u32   u32    u64   u32

Meaning of the fields beyond their names, by kind:
    ATTACH    transfer: the number that stands for this transfer on this connection; payload: its id
    DATA      total: bytes of the whole segment; value: xxh3-64 of the payload
    FINISH    total: segments of the transfer; value: its bytes
    ACK       value: DATA frames of this connection dealt with so far
    NACK      value: index of the DATA frame (of this connection) that has to be sent again
    REJECT    offset: a `Refusal`; payload: the reason in words
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple, Protocol

import xxhash

from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.transport.errors import FrameError

VERSION = 1
_BODY = struct.Struct("!BBHHHIIIIIQ")
_CHECK = struct.Struct("!I")
HEADER_BYTES = _BODY.size + _CHECK.size
MAX_CONTROL_BYTES = 1024
"""Longest payload of any frame but DATA."""
STAGING_BYTES = 8 * 1024
"""What is read beyond the current payload: the next header, or many small frames, in one call."""

MAX_U16, MAX_U32 = 2**16 - 1, 2**32 - 1


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
    layer: int
    part: int
    reserved: int
    chunk: int
    transfer: int
    length: int
    total: int
    offset: int
    value: int

    @property
    def segment(self) -> SegmentKey:
        return SegmentKey(self.layer, self.part, self.chunk)


def digest(payload: memoryview | bytes) -> int:
    """What a DATA frame's `value` must be."""
    return int(xxhash.xxh3_64_intdigest(payload))


def encode(
    kind: int, *, transfer: int = 0, key: SegmentKey | None = None, length: int = 0, total: int = 0,
    offset: int = 0, value: int = 0,
) -> bytes:  # fmt: skip
    """A frame's header; the caller sends `length` bytes of payload after it."""
    layer, part, chunk = (key.layer, key.part, key.chunk) if key is not None else (0, 0, 0)
    body = _BODY.pack(VERSION, kind, layer, part, 0, chunk, transfer, length, total, offset, value)
    return body + _CHECK.pack(xxhash.xxh32_intdigest(body))


def encode_control(kind: int, payload: bytes = b"", *, transfer: int = 0, offset: int = 0) -> bytes:
    """A whole frame with a short payload (ATTACH, REJECT), cut to what the peer accepts."""
    payload = payload[:MAX_CONTROL_BYTES]
    return encode(kind, transfer=transfer, length=len(payload), offset=offset) + payload


def decode_header(raw: memoryview) -> Header:
    """Raises FrameError for anything that is not a whole, undamaged header of this version."""
    body = raw[: _BODY.size]
    if len(raw) != HEADER_BYTES or _CHECK.unpack(raw[_BODY.size :])[0] != xxhash.xxh32_intdigest(body):
        raise FrameError("the peer sent bytes that are no frame", remedy="is the port another service's?")
    header = Header._make(_BODY.unpack(body))
    if header.version != VERSION:
        raise FrameError(f"the peer sent a frame of version {header.version}, this is version {VERSION}")
    return header


class FrameSink(Protocol):
    """Who takes what a `Decoder` finds."""

    def place(self, header: Header) -> memoryview:
        """Where the payload of a DATA frame goes: exactly `header.length` writable bytes."""

    def frame(self, header: Header, payload: memoryview) -> None:
        """A whole frame has arrived; `payload` is what `place` gave (or `divert` put in its stead)."""


class Decoder:
    """Finds frames in a stream of bytes, and says where the next bytes should be put.

    The payload of DATA goes straight where `sink.place` says; `buffers` offers that place first
    and a small staging area second, so that one read takes a payload and the header after it, or
    many small frames at once. Memory held: the staging area, and one control payload.
    """

    def __init__(self, sink: FrameSink, *, max_payload_bytes: int) -> None:
        self._sink = sink
        self._max_payload_bytes = max_payload_bytes
        self._staging = memoryview(bytearray(STAGING_BYTES))
        self._start = self._end = 0
        self._header: Header | None = None
        self._payload = self._missing = memoryview(b"")

    @property
    def idle(self) -> bool:
        """Between two frames: nothing of the next one has arrived."""
        return self._header is None and self._start == self._end

    def buffers(self) -> list[memoryview]:
        """Where to put the bytes that come next, in this order. Never empty."""
        staging = self._staging[self._end :]
        return [self._missing, staging] if self._header is not None else [staging]

    def received(self, count: int) -> None:
        """`count` bytes were put into `buffers()`. Raises FrameError; the connection is then useless."""
        if self._header is not None:
            direct = min(count, len(self._missing))
            self._missing = self._missing[direct:]
            count -= direct
            if not self._missing:
                self._finish(self._header)
        self._end += count
        while self._step():
            pass
        self._compact()

    def feed(self, incoming: bytes | memoryview) -> None:
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
        """The rest of the current payload goes to `scratch` (at least as long as the payload)."""
        if self._header is None:
            return
        length, missing = len(self._payload), len(self._missing)
        self._payload = scratch[:length]
        self._missing = self._payload[length - missing :]

    def _step(self) -> bool:
        """Use what is staged for one header or one payload; False when more bytes are needed."""
        staged = self._end - self._start
        if self._header is not None:
            count = min(staged, len(self._missing))
            self._missing[:count] = self._staging[self._start : self._start + count]
            self._missing = self._missing[count:]
            self._start += count
            if self._missing:
                return False
            self._finish(self._header)
            return True
        if staged < HEADER_BYTES:
            return False
        raw = self._staging[self._start : self._start + HEADER_BYTES]
        self._start += HEADER_BYTES
        self._begin(decode_header(raw))
        return True

    def _begin(self, header: Header) -> None:
        if header.kind == Kind.DATA:
            if header.length > self._max_payload_bytes:
                raise FrameError(f"the peer announced {header.length} bytes in one frame")
            payload = self._sink.place(header)
            assert len(payload) == header.length
        else:
            if header.length > MAX_CONTROL_BYTES:
                raise FrameError(f"the peer announced a control frame of {header.length} bytes")
            payload = memoryview(bytearray(header.length))
        self._header, self._payload, self._missing = header, payload, payload
        if not header.length:
            self._finish(header)

    def _finish(self, header: Header) -> None:
        payload = self._payload
        self._header = None
        self._payload = self._missing = memoryview(b"")
        self._sink.frame(header, payload)

    def _compact(self) -> None:
        left = self._end - self._start
        if self._start and left:
            self._staging[:left] = bytes(self._staging[self._start : self._end])
        self._start, self._end = 0, left
