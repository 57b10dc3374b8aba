"""One transfer as its sender sees it: what waits, what is on the wire, what is acknowledged."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from prfaas_lab.errors import TransportError
from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.transport.carried import Frame
from prfaas_lab.transport.encoding import Encoder, Encoding
from prfaas_lab.transport.errors import TransferCancelled, TransferWithdrawn
from prfaas_lab.transport.frames import (
    MAX_PIECES,
    MAX_U16,
    MAX_U32,
    Bytes,
    Key,
    Kind,
    Piece,
    encode,
    encode_control,
    encode_data,
)

Encoded = tuple[SegmentKey, int, memoryview]
"""A segment, its size in memory, and what goes on the wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A transfer that the receiver holds complete and checked. Times are the sender's clock."""

    bytes: int
    wire_bytes: int
    """What they took on the wire, encoded; as many if nothing was."""
    first_byte_at: float
    last_ack_at: float
    exposed_s: float
    """From `finish` (prefill is done) to the receiver's word that everything arrived."""
    retried: int
    """Frames sent more than once: damaged on the way, or on a connection that died."""


class Way(Protocol):
    """What a transfer needs of the connections that carry it."""

    def ready(self, outgoing: Outgoing) -> None:
        """It has something to send."""

    def withdraw(self, outgoing: Outgoing, *, tell_peer: bool) -> None:
        """It has ended: what is queued or on the wire no longer matters."""


class Outgoing:
    """A transfer being sent. `send` as segments become ready, then `finish`, or `cancel`.

    Call from the loop's thread. The memory given to `send` must stay as it is until `finish`
    returns or the transfer has failed. An `encoder` makes segments shorter on their way, beside the loop.
    """

    def __init__(
        self, transfer_id: str, number: int, way: Way, clock: Callable[[], float], *,
        weight: float, expected_bytes: int | None, served: float, encoder: Encoder | None,
    ) -> None:  # fmt: skip
        self.transfer_id, self.number = transfer_id, number
        self._way, self._clock = way, clock
        self._encoding = None if encoder is None else Encoding(encoder, self._enqueue, self._not_encoded)
        self._weight, self._expected_bytes = weight, expected_bytes
        self._served_before = served
        self._waiting: deque[tuple[Key, int, memoryview, int]] = deque()
        self._again: deque[Frame] = deque()
        self._keys: set[Key] = set()
        self._finish_due = False
        self._finish_at: float | None = None
        self._finish_frame: Frame | None = None
        self._first_byte_at: float | None = None
        self._ended = asyncio.Event()
        self._error: TransportError | None = None
        self._sent: Sent | None = None
        self.payload_bytes = 0
        self.enqueued_bytes = self.taken_bytes = self.acked_bytes = 0
        """On the wire, as are all that connections count."""
        self.retried = 0
        self._room = asyncio.Event()

    # -- what the engine calls -----------------------------------------------------------------

    def send(self, key: SegmentKey, data: memoryview) -> None:
        """Queue one segment. Raises what ended the transfer, if something has."""
        self._raise_if_failed()
        assert self._finish_at is None, "send after finish"
        view = data if data.format == "B" and data.ndim == 1 else data.cast("B")
        name = key.layer, key.part, key.chunk
        if name in self._keys or not _fits(name, len(view)):
            raise ValueError(f"{key} of {len(view)} bytes was sent already, or is out of range")
        self._keys.add(name)
        self.payload_bytes += len(view)
        if self._encoding is None:
            self._enqueue(key, len(view), view)
        else:
            self._encoding.put(key, view)

    async def drain(self, high_bytes: int) -> None:
        """Return once no more than `high_bytes` of this transfer wait for their acknowledgement, those that
        are not encoded yet included."""
        while self._pending_bytes + self.enqueued_bytes - self.acked_bytes > high_bytes:
            self._raise_if_failed()
            self._room.clear()
            await self._room.wait()
        self._raise_if_failed()

    async def finish(self) -> Sent:
        """Say that everything was sent, and wait until the receiver has it all, checked.

        Raises PeerLost, TransferTimeout, UnknownTransfer, SegmentRefused, CorruptSegment or
        TransferCancelled.
        """
        self._raise_if_failed()
        if self._finish_at is None:
            self._finish_at, self._finish_due = self._clock(), True
            if self.has_work:
                self._way.ready(self)
        try:
            await self._ended.wait()  # bounded by the way's deadlines, which end the transfer
        except asyncio.CancelledError:
            self.cancel()
            raise
        self._raise_if_failed()
        assert self._sent is not None
        return self._sent

    def cancel(self) -> None:
        """Stop: nothing more goes out, and the memory given to `send` is no longer referred to, but for what
        the codec's thread has in hand."""
        self._end(
            TransferCancelled(f"transfer {self.transfer_id} was cancelled by its sender"), tell_peer=True
        )

    @property
    def is_unsent(self) -> bool:
        """All of it waits, ready to go."""
        is_whole = self._finish_at is not None and not self._is_encoding
        return is_whole and not self.ended and not self.taken_bytes

    def withdraw(self) -> list[Encoded]:
        """Nothing was sent, nor will be from here: what was to be, and `finish` raises TransferWithdrawn. The
        receiver is not told: it may get the transfer from elsewhere."""
        assert not self.taken_bytes, "some of it was sent"
        segments = [(SegmentKey(*key), size_bytes, wire) for key, size_bytes, wire, _ in self._waiting]
        self._end(TransferWithdrawn(f"transfer {self.transfer_id} was withdrawn"), tell_peer=False)
        return segments

    def send_encoded(self, key: SegmentKey, size_bytes: int, wire: memoryview) -> None:
        """Queue a segment of a transfer that was withdrawn."""
        self._raise_if_failed()
        self._keys.add((key.layer, key.part, key.chunk))
        self.payload_bytes += size_bytes
        self._enqueue(key, size_bytes, wire)

    # -- what its connections call -------------------------------------------------------------

    @property
    def order(self) -> int:
        return self.number

    @property
    def remaining_bytes(self) -> int:
        to_come = max(0, (self._expected_bytes or 0) - self.payload_bytes)
        return to_come + self._pending_bytes + self.enqueued_bytes - self.taken_bytes

    @property
    def served(self) -> float:
        return self._served_before + self.taken_bytes / self._weight

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._again or self._may_finish)

    @property
    def unfinished(self) -> bool:
        """Something can go to the peer, or has gone, and its answer is still to come."""
        is_owed = self._finish_at is not None and not self._is_encoding
        return not self.ended and (is_owed or self.acked_bytes < self.enqueued_bytes)

    def finish_is_overdue(self, before: float) -> bool:
        """Everything is acknowledged, and the finish was sent before a time and not answered."""
        frame = self._finish_frame
        answered = self.ended or self._finish_due or self.acked_bytes < self.enqueued_bytes
        return frame is not None and not answered and frame.fate.tried_at < before

    def next_frame(self, limit_bytes: int) -> Frame | None:
        """The next frame to go on any connection, of at most `limit_bytes` if it is cut now: first
        what has to go again, last the finish."""
        while self._again:
            if not (frame := self._again.popleft()).fate.has_arrived:
                return frame
        if self._waiting:
            return self._cut(limit_bytes)
        if self._may_finish:
            self._finish_due = False
            segments, size = len(self._keys), self.enqueued_bytes
            header = encode(Kind.FINISH, transfer=self.number, extra=segments, value=size)
            self._finish_frame = Frame(self, Kind.FINISH, header)
            return self._finish_frame
        return None

    def attach_frame(self) -> Frame:
        return Frame(
            self, Kind.ATTACH, encode_control(Kind.ATTACH, self.transfer_id.encode(), transfer=self.number)
        )

    def control_frame(self, kind: Kind) -> Frame:
        return Frame(self, kind, encode(kind, transfer=self.number))

    def began(self) -> None:
        if self._first_byte_at is None:
            self._first_byte_at = self._clock()

    def acked(self, frame: Frame) -> None:
        self.acked_bytes += frame.payload_bytes
        frame.payloads = ()
        self._room.set()

    def again(self, frame: Frame) -> None:
        """A frame failed, or is a copy of one that is slow: it goes out before anything new."""
        frame.fate.copies += 1
        self.retried += 1
        self._again.append(frame)

    def finish_again(self) -> None:
        """The connection that carried our finish, or would have brought the answer, is gone or slow."""
        self._finish_due = self._finish_at is not None and not self.ended

    def completed(self) -> None:
        if self.ended:
            return
        now = self._clock()
        self._sent = Sent(
            bytes=self.payload_bytes,
            wire_bytes=self.enqueued_bytes,
            first_byte_at=now if self._first_byte_at is None else self._first_byte_at,
            last_ack_at=now,
            exposed_s=now - (now if self._finish_at is None else self._finish_at),
            retried=self.retried,
        )
        self._end(None, tell_peer=False)

    def fail(self, error: TransportError, *, tell_peer: bool) -> None:
        self._end(error, tell_peer=tell_peer)

    # ------------------------------------------------------------------------------------------

    @property
    def _pending_bytes(self) -> int:
        """Handed over, and not encoded yet."""
        return 0 if self._encoding is None else self._encoding.pending_bytes

    @property
    def _is_encoding(self) -> bool:
        return self._encoding is not None and not self._encoding.is_idle

    @property
    def _may_finish(self) -> bool:
        return self._finish_due and not self._is_encoding

    def _enqueue(self, key: SegmentKey, size_bytes: int, wire: memoryview) -> None:
        """A segment is as it will go."""
        self._waiting.append(((key.layer, key.part, key.chunk), size_bytes, wire, 0))
        self.enqueued_bytes += len(wire)
        self._room.set()
        self._way.ready(self)

    def _not_encoded(self, error: BaseException) -> None:
        what = f"{self.transfer_id} could not be encoded: {error!r}"
        self._end(TransportError(what), tell_peer=True)

    def _cut(self, limit_bytes: int) -> Frame:
        """As many whole segments as fit, or the part of one that does."""
        pieces: list[Piece] = []
        payloads: list[Bytes] = []
        left = limit_bytes
        while self._waiting and left > 0 and len(pieces) < MAX_PIECES:
            key, size, view, offset = self._waiting[0]
            total = len(view)
            length = min(total - offset, left)
            if offset + length < total:
                self._waiting[0] = (key, size, view, offset + length)
            else:
                self._waiting.popleft()
            pieces.append(Piece(*key, size, total, offset, length))
            payloads.append(view if length == total else view[offset : offset + length])
            left -= length
        payload_bytes = limit_bytes - left
        self.taken_bytes += payload_bytes
        return Frame(self, Kind.DATA, encode_data(self.number, pieces, payloads), payloads, payload_bytes)

    def _end(self, error: TransportError | None, *, tell_peer: bool) -> None:
        if self.ended:
            return
        self._error = error
        if self._encoding is not None:
            self._encoding.drop()
        self._waiting.clear()
        self._again.clear()
        self._finish_due = False
        self._ended.set()
        self._room.set()
        self._way.withdraw(self, tell_peer=tell_peer)

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error


def _fits(key: Key, size_bytes: int) -> bool:
    layer, part, chunk = key
    return 0 <= layer <= MAX_U16 and 0 <= part <= MAX_U16 and 0 <= chunk <= MAX_U32 and size_bytes <= MAX_U32
