"""One connection as its receiver sees it: bytes go straight to their destination, answers go back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from prfaas_lab.errors import TransportError
from prfaas_lab.transport.errors import FrameError, PeerLost, SegmentRefused, TransferCancelled
from prfaas_lab.transport.frames import Decoder, Header, Kind, Piece, Refusal, digest, encode, encode_control
from prfaas_lab.transport.incoming import Incoming
from prfaas_lab.transport.limits import Limits

_BURST_BYTES = 2**20
"""What one turn of the loop may read on one connection before the others get theirs."""
_ACK_BYTES = 2**20
"""While more is arriving, acknowledge this often; whenever nothing is, at once."""
_WAKE_BYTES = 128 * 1024
"""Sleep through the arrival of at most this much of a frame."""
_MAX_ANSWER_BYTES = 2**20
"""A sender that reads none of its answers is cut off once this many wait."""


class Register(Protocol):
    """Who knows the transfers that are expected."""

    def find(self, transfer_id: str) -> Incoming | Refusal | None:
        """The transfer; or how it ended (None: it is complete) once it has."""

    def lost(self, inlet: Inlet, error: TransportError) -> None: ...


class Inlet:
    """A connected, authenticated socket from one sender, carrying frames of any of its transfers."""

    def __init__(self, sock: socket.socket, register: Register, limits: Limits, scratch: memoryview) -> None:
        self.sock = sock
        self._register, self._limits, self._scratch = register, limits, scratch
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(self, max_payload_bytes=limits.max_frame_bytes)
        self._transfers: dict[int, Incoming] = {}
        self._highest = 0
        self._placing: Incoming | None = None
        self._pieces: list[Piece] = []
        self._refetch = False
        self._frames = self._acked_frames = 0
        self._unanswered_bytes = 0
        self._wake_bytes = 1
        self._answers = bytearray()
        self.closed = False
        self.resume()

    def pause(self) -> None:
        """Read no more: the kernel's window closes, and the sender stops at its own window."""
        self._loop.remove_reader(self.sock)

    def resume(self) -> None:
        self._loop.add_reader(self.sock, self._readable)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self.sock)
        self._loop.remove_writer(self.sock)
        self.sock.close()
        self.divert(refetch=False)
        now = self._loop.time()
        for incoming in self._transfers.values():
            incoming.detach(self, now)

    # -- reading -------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            self._read()
            if self._decoder.idle or self._unanswered_bytes >= _ACK_BYTES:
                self._acknowledge()
            self._sleep_until(min(max(self._decoder.missing_bytes, 1), _WAKE_BYTES))
        except OSError as error:
            self._register.lost(self, PeerLost(f"a connection failed: {error}"))
        except TransportError as error:
            self._register.lost(self, error)

    def _read(self) -> None:
        budget = _BURST_BYTES
        while budget > 0 and not self.closed:
            buffers = self._decoder.buffers()
            try:
                count = self.sock.recvmsg_into(buffers)[0]
            except BlockingIOError:
                return
            if not count:
                raise PeerLost("the sender closed a connection")
            if self._placing is not None:
                self._placing.progress_at = self._loop.time()
            self._decoder.received(count)
            budget -= count
            if count < sum(map(len, buffers)):
                return

    def _sleep_until(self, waiting_bytes: int) -> None:
        """Wake us once this much is there: a part of a frame is of no use to anybody."""
        if waiting_bytes != self._wake_bytes and not self.closed:
            self._wake_bytes = waiting_bytes
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, waiting_bytes)

    def place(self, header: Header, pieces: list[Piece]) -> list[memoryview]:
        incoming = self._transfers.get(header.transfer)
        if incoming is None and header.transfer > self._highest:
            raise FrameError("a segment of a transfer that was not announced")
        self._placing, self._pieces, self._refetch = None, pieces, False
        if incoming is not None:
            try:
                places = incoming.place(self, pieces)
            except SegmentRefused as error:
                incoming.end(error, Refusal.SEGMENT)
            else:
                self._placing = incoming
                return places
        return [self._scratch[: piece.length] for piece in pieces]

    def data(self, header: Header, places: list[memoryview]) -> None:
        index, self._frames = self._frames, self._frames + 1
        self._unanswered_bytes += header.length
        incoming, self._placing = self._placing, None
        if incoming is not None:
            if digest(places) == header.value:
                incoming.arrived(self, self._pieces, places, self._loop.time())
            else:
                incoming.spoiled(self, self._pieces)
                self._refetch = True
        if self._refetch:
            self._answer(encode(Kind.NACK, value=index))

    def control(self, header: Header, payload: bytes) -> None:
        action = _CONTROL.get(header.kind)
        if action is None:
            raise FrameError(f"a sender sent a frame of kind {header.kind}")
        action(self, header, payload)

    # -- control frames ------------------------------------------------------------------------

    def _attach(self, header: Header, payload: bytes) -> None:
        number, transfer_id = header.transfer, payload.decode("utf-8", "replace")
        if number in self._transfers or len(self._transfers) >= self._limits.max_transfers:
            raise FrameError("a transfer was announced twice, or too many were")
        self._highest = max(self._highest, number)
        found = self._register.find(transfer_id)
        if isinstance(found, Incoming):
            if (before := found.carriers.get(self)) is not None:
                del self._transfers[before]  # it was withdrawn, and comes again
            self._transfers[number] = found
            found.attach(self, number, self._loop.time())
        else:
            reason = "" if found is None else f"transfer {transfer_id} is {_STANDING[found]}"
            self._verdict(number, found, reason)

    def _finish(self, header: Header, payload: bytes) -> None:
        if (incoming := self._transfers.get(header.transfer)) is not None:
            incoming.finished(header.extra, header.value, self._loop.time())

    def _cancel(self, header: Header, payload: bytes) -> None:
        if (incoming := self._transfers.get(header.transfer)) is not None:
            error = TransferCancelled(f"transfer {incoming.transfer_id} was cancelled by its sender")
            incoming.end(error, Refusal.CANCELLED)

    def _alive(self, header: Header, payload: bytes) -> None:
        if (incoming := self._transfers.get(header.transfer)) is not None:
            incoming.progress_at = self._loop.time()

    # -- what the transfers call ---------------------------------------------------------------

    def divert(self, *, refetch: bool) -> None:
        """Also when the connection is lost: the places are free for another to fill."""
        if self._placing is not None:
            self._placing.displaced(self, self._pieces)
        self._decoder.divert(self._scratch)
        self._placing, self._refetch = None, refetch

    def ended(self, incoming: Incoming, number: int, refusal: Refusal | None, reason: str) -> None:
        if self._placing is incoming:
            self.divert(refetch=False)
        self._transfers.pop(number, None)
        self._verdict(number, refusal, reason)

    # -- answers -------------------------------------------------------------------------------

    def _verdict(self, number: int, refusal: Refusal | None, reason: str) -> None:
        if refusal is None:
            self._answer(encode(Kind.COMPLETE, transfer=number))
        else:
            self._answer(encode_control(Kind.REJECT, reason.encode(), transfer=number, extra=refusal))

    def _acknowledge(self) -> None:
        if self._frames > self._acked_frames:
            self._acked_frames, self._unanswered_bytes = self._frames, 0
            self._answer(encode(Kind.ACK, value=self._frames))

    def _answer(self, frame: bytes) -> None:
        if self.closed:
            return
        self._answers += frame
        if len(self._answers) == len(frame):
            self._write()
        elif len(self._answers) > _MAX_ANSWER_BYTES:
            self._register.lost(self, PeerLost("a sender reads no answers"))

    def _write(self) -> None:
        try:
            written = self.sock.send(self._answers)
        except BlockingIOError:
            written = 0
        except OSError as error:
            self._answers.clear()
            # Not from within a read: the transfers that it feeds are in the middle of something.
            self._loop.call_soon(self._register.lost, self, PeerLost(f"a connection failed: {error}"))
            return
        del self._answers[:written]
        if self._answers:
            self._loop.add_writer(self.sock, self._write)
        else:
            self._loop.remove_writer(self.sock)


_CONTROL: dict[int, Callable[[Inlet, Header, bytes], None]] = {
    Kind.ATTACH: Inlet._attach,
    Kind.FINISH: Inlet._finish,
    Kind.CANCEL: Inlet._cancel,
    Kind.ALIVE: Inlet._alive,
}
_STANDING = {
    Refusal.UNKNOWN: "not expected here",
    Refusal.SEGMENT: "refused: a segment did not belong",
    Refusal.CANCELLED: "cancelled",
    Refusal.TIMEOUT: "given up: it made no progress",
    Refusal.CORRUPT: "given up: it kept arriving damaged",
}
