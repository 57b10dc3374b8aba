"""One connection as its sender sees it: takes frames from the shared queue whenever it can write."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Protocol

from prfaas_lab.errors import TransportError
from prfaas_lab.transport.carried import Frame
from prfaas_lab.transport.errors import FrameError, PeerLost
from prfaas_lab.transport.frames import MAX_PIECES, Bytes, Decoder, Header, Kind, Piece
from prfaas_lab.transport.limits import Limits
from prfaas_lab.transport.outgoing import Outgoing
from prfaas_lab.transport.sockets import limit_unsent

_BURST_BYTES = 2**20
"""What one turn of the loop may write on one connection before the others get theirs."""
_IOV_BUFFERS = 1024
"""Buffers that the kernel takes in one system call."""


class Source(Protocol):
    """The queue that the connections to one peer share."""

    def take(self, stream: SendStream) -> list[Frame]:
        """The next frames for this connection; none when there is nothing, or the window is full."""

    def acked(self, stream: SendStream, frames: list[Frame]) -> None: ...
    def damaged(self, frame: Frame) -> None: ...
    def answered(self, header: Header, reason: str) -> None:
        """REJECT or COMPLETE."""

    def lost(self, stream: SendStream, error: TransportError) -> None: ...


class SendStream:
    """A connected, authenticated socket that carries frames of any transfer to its peer."""

    def __init__(self, sock: socket.socket, source: Source, settings: Limits) -> None:
        self.sock = sock
        self._unsent_frames = settings.unsent_frames
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(self, max_payload_bytes=0)
        self._writing: deque[Frame] = deque()
        self._written_bytes = 0  # of the first frame of `_writing`
        self._unacked: deque[Frame] = deque()
        self._acked_frames = 0
        self._kernel_acked_bytes = 0
        self._polled = self._woken = False
        self.unacked_bytes = 0
        self.progress_at = self.answered_at = self._loop.time()
        self.attached: set[Outgoing] = set()
        self.closed = False
        self.frame_bytes = 0
        self.tune(settings.frame_bytes)
        self._loop.add_reader(sock, self._readable)

    @property
    def idle(self) -> bool:
        """It could write at once, but has nothing to write."""
        return not (self._writing or self._polled or self._woken)

    def wake(self) -> None:
        """There is something to write: do it once the caller is done queueing."""
        if not (self._woken or self._polled):
            self._woken = True
            self._loop.call_soon(self._write)

    def push(self, frame: Frame) -> None:
        """A frame for this very connection, after what it has already taken."""
        self._writing.append(frame)
        self.wake()

    def close(self) -> None:
        """Give the connection up; `unacknowledged` says what the peer may not have got."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self.sock)
        self._poll(False)
        self.sock.close()

    def unacknowledged(self) -> list[Frame]:
        """DATA frames taken by this connection, written or not, that the peer did not answer for."""
        return [frame for frame in self._unacked if frame.header]

    def overdue(self, before: float) -> list[Frame]:
        """Frames of which no copy was taken since a time, and none has arrived."""
        return [
            frame
            for frame in self._unacked
            if frame.header and not frame.fate.has_arrived and frame.fate.tried_at < before
        ]

    def forget(self, outgoing: Outgoing) -> None:
        """A transfer ended: frames of it that have not begun to leave never will, and its memory is
        let go. The rest of a frame that has begun is replaced by zeros, as its length is promised."""
        self.attached.discard(outgoing)
        begun = self._writing[0] if self._writing and self._written_bytes else None
        dropped = {f for f in self._writing if f.outgoing is outgoing and f is not begun}
        self._writing = deque(f for f in self._writing if f not in dropped)
        self._unacked = deque(f for f in self._unacked if f not in dropped)
        self.unacked_bytes -= sum(f.payload_bytes for f in dropped)
        for frame in self._unacked:
            if frame.outgoing is outgoing:
                frame.payloads = (bytes(frame.payload_bytes),) if frame is begun else ()

    def note_acked(self, kernel_acked_bytes: int, now: float) -> bool:
        """The kernel's count of acknowledged bytes; True when it grew."""
        grew = kernel_acked_bytes > self._kernel_acked_bytes
        if grew:
            self._kernel_acked_bytes, self.progress_at = kernel_acked_bytes, now
        return grew

    def tune(self, frame_bytes: int) -> None:
        """Take frames of this size from now on (unless that changes next to nothing)."""
        if abs(frame_bytes - self.frame_bytes) > self.frame_bytes / 4:
            self.frame_bytes = frame_bytes
            limit_unsent(self.sock, self._unsent_frames * frame_bytes)

    # -- writing -------------------------------------------------------------------------------

    def _write(self) -> None:
        self._woken = False
        if self.closed:
            return
        budget = _BURST_BYTES
        try:
            while budget > 0:
                if not self._writing and not self._refill():
                    self._poll(False)
                    return
                written = self.sock.sendmsg(self._buffers())
                self._advance(written)
                budget -= written
        except BlockingIOError:
            pass
        except OSError as error:
            self._source.lost(self, PeerLost(f"a connection failed while sending: {error}"))
            return
        self._poll(True)

    def _refill(self) -> bool:
        frames = self._source.take(self)
        self._writing.extend(frames)
        now = self._loop.time()
        for frame in frames:
            frame.fate.tried_at = now
            if frame.kind is Kind.DATA:
                if not self._unacked:
                    self.progress_at = now
                self._unacked.append(frame)
                self.unacked_bytes += frame.payload_bytes
        return bool(frames)

    def _buffers(self) -> list[Bytes]:
        buffers: list[Bytes] = []
        for frame in self._writing:
            buffers.append(frame.header)
            buffers.extend(frame.payloads)
            if len(buffers) >= _IOV_BUFFERS - MAX_PIECES:
                break
        return _without(buffers, self._written_bytes) if self._written_bytes else buffers

    def _advance(self, written: int) -> None:
        written += self._written_bytes
        writing = self._writing
        while writing:
            frame = writing[0]
            if written < frame.size_bytes:
                break
            written -= frame.size_bytes
            writing.popleft()
            frame.outgoing.began()
        self._written_bytes = written

    def _poll(self, wanted: bool) -> None:
        if wanted == self._polled:
            return
        self._polled = wanted
        if wanted:
            self._loop.add_writer(self.sock, self._write)
        else:
            self._loop.remove_writer(self.sock)

    # -- reading -------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            count = self.sock.recvmsg_into(self._decoder.buffers())[0]
            if not count:
                raise PeerLost("the receiver closed a connection")
            self._decoder.received(count)
        except BlockingIOError:
            return
        except OSError as error:
            self._source.lost(self, PeerLost(f"a connection failed: {error}"))
        except TransportError as error:
            self._source.lost(self, error)

    def place(self, header: Header, pieces: list[Piece]) -> list[memoryview]:
        raise FrameError("a receiver sent a segment")

    def data(self, header: Header, places: list[memoryview]) -> None:
        raise AssertionError("never placed")

    def control(self, header: Header, payload: bytes) -> None:
        self.answered_at = self._loop.time()
        if header.kind == Kind.ACK:
            self._acknowledge(header.value)
        elif header.kind == Kind.NACK:
            self._damaged(header.value)
        elif header.kind in (Kind.REJECT, Kind.COMPLETE):
            self._source.answered(header, payload.decode("utf-8", "replace"))
        else:
            raise FrameError(f"a receiver sent a frame of kind {header.kind}")

    def _acknowledge(self, count: int) -> None:
        fresh = count - self._acked_frames
        if not 0 <= fresh <= len(self._unacked):
            raise FrameError("the receiver acknowledged what was not sent")
        self._acked_frames = count
        self.progress_at = self._loop.time()
        frames = [self._unacked.popleft() for _ in range(fresh)]
        self.unacked_bytes -= sum(f.payload_bytes for f in frames)
        self._source.acked(self, frames)

    def _damaged(self, index: int) -> None:
        position = index - self._acked_frames
        if not 0 <= position < len(self._unacked):
            raise FrameError("the receiver refused what was not sent")
        frame = self._unacked[position]
        # Its place in the sequence stays taken, by a frame of nothing that the next ACK will cover.
        self._unacked[position] = Frame(frame.outgoing, Kind.DATA, b"")
        self.unacked_bytes -= frame.payload_bytes
        self._source.damaged(frame)


def _without(buffers: list[Bytes], count: int) -> list[Bytes]:
    """The buffers less their first `count` bytes."""
    skipped = 0
    while skipped < len(buffers) and count >= len(buffers[skipped]):
        count -= len(buffers[skipped])
        skipped += 1
    rest = buffers[skipped:]
    if count and rest:
        rest[0] = memoryview(rest[0])[count:]
    return rest
