"""The connections to one peer, and the transfers that share them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from prfaas_lab.errors import TransportError
from prfaas_lab.transport.carried import Frame
from prfaas_lab.transport.congestion import PathSample
from prfaas_lab.transport.dial import Peer, Terms, dial
from prfaas_lab.transport.encoding import Encoder
from prfaas_lab.transport.errors import (
    CorruptSegment,
    HandshakeError,
    SegmentRefused,
    TransferCancelled,
    TransferTimeout,
    UnknownTransfer,
)
from prfaas_lab.transport.frames import Header, Kind, Refusal
from prfaas_lab.transport.limits import Limits
from prfaas_lab.transport.outgoing import Outgoing
from prfaas_lab.transport.schedule import POLICIES, choose
from prfaas_lab.transport.sockets import Tasks
from prfaas_lab.transport.stream import SendStream
from prfaas_lab.transport.upkeep import Upkeep

_BACKOFF_S = (0.02, 1.0)
_REFUSALS: dict[int, type[TransportError]] = {
    Refusal.UNKNOWN: UnknownTransfer,
    Refusal.SEGMENT: SegmentRefused,
    Refusal.CANCELLED: TransferCancelled,
    Refusal.TIMEOUT: TransferTimeout,
    Refusal.CORRUPT: CorruptSegment,
}


class Route:
    """N pooled connections to one receiver. Frames wait in the transfers, and every connection that
    can write takes the next ones: none of them owns a transfer, so none can hold one up."""

    def __init__(
        self, peer: Peer, terms: Terms, encoder: Encoder | None, settings: Limits, clock: Callable[[], float]
    ) -> None:
        self.peer = peer
        self._terms, self._encoder, self._settings, self._clock = terms, encoder, settings, clock
        self._policy = POLICIES[settings.policy]
        self._wanted = settings.connections_to_peer()
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks()
        self._dialling = asyncio.Lock()
        self._short = asyncio.Event()
        self._numbers = itertools.count(1)
        self._ready: dict[int, Outgoing] = {}
        self._window_bytes = settings.window_bytes
        self._max_frame_bytes = settings.max_frame_bytes
        self._window_full = False
        self.alone_since = self._loop.time()
        self.progress_at = self._loop.time()
        self.transfers: dict[int, Outgoing] = {}
        self.streams: list[SendStream] = []
        self.path: PathSample | None = None
        upkeep = Upkeep(self, settings, clock)
        for work in (self._keep_connected(), upkeep.watch(), upkeep.sample(), upkeep.overtake()):
            self._tasks.start(work)

    # -- for the sender ------------------------------------------------------------------------

    async def open(
        self, transfer_id: str, *, weight: float, expected_bytes: int | None, exact: bool
    ) -> Outgoing:
        """Raises PeerLost, or the handshake's error when the peer is the wrong one."""
        if not self.streams:
            async with self._dialling:
                if not self.streams:
                    await self._dial()
        served = min((t.served for t in self._ready.values()), default=0.0)
        encoder = self._encoder
        if exact and encoder is not None and encoder.codec.lossy:
            encoder = None
        outgoing = Outgoing(
            transfer_id, next(self._numbers), self, self._clock,
            weight=weight, expected_bytes=expected_bytes, served=served, encoder=encoder,
        )  # fmt: skip
        self.transfers[outgoing.number] = outgoing
        self.attach(outgoing)
        return outgoing

    async def close(self) -> None:
        await self._tasks.close()
        for outgoing in list(self.transfers.values()):
            outgoing.fail(TransferCancelled("the sender was closed"), tell_peer=False)
        for stream in self.streams:
            stream.close()
        self.streams.clear()

    # -- for the transfers ---------------------------------------------------------------------

    def ready(self, outgoing: Outgoing) -> None:
        if outgoing.number in self._ready:
            return  # a connection was woken for it, and wakes the next as long as there is more
        if not self._ready and not self._unacked_bytes:
            self.progress_at = self._loop.time()  # nobody was kept waiting until now
        self._ready[outgoing.number] = outgoing
        self._wake()

    def withdraw(self, outgoing: Outgoing, *, tell_peer: bool) -> None:
        self.transfers.pop(outgoing.number, None)
        self._ready.pop(outgoing.number, None)
        for stream in self.streams:
            attached = outgoing in stream.attached
            stream.forget(outgoing)
            if tell_peer and attached:
                stream.push(outgoing.control_frame(Kind.CANCEL))
        self._unblock()

    # -- for the connections -------------------------------------------------------------------

    def take(self, stream: SendStream) -> list[Frame]:
        outgoing = choose(self._policy, self._ready.values()) if len(self._ready) > 1 else self._only()
        if outgoing is None:
            return []
        room = self._window_bytes - self._unacked_bytes
        if room <= 0:
            self._window_full = True
            return []
        frames = self._batch(outgoing, stream, min(room, stream.frame_bytes, self._max_frame_bytes))
        if not outgoing.has_work:
            self._ready.pop(outgoing.number, None)
        if self._ready:
            self._wake()
        return frames

    def acked(self, stream: SendStream, frames: list[Frame]) -> None:
        self.progress_at = self._loop.time()
        for frame in frames:
            if frame.arrived() and not frame.outgoing.ended:
                frame.outgoing.acked(frame)
        self._unblock()

    def damaged(self, frame: Frame) -> None:
        outgoing = frame.outgoing
        if not frame.failed() or outgoing.ended:
            return
        frame.attempts += 1
        if frame.attempts >= self._settings.max_attempts:
            error = CorruptSegment(
                f"a piece of {outgoing.transfer_id} arrived damaged {frame.attempts} times"
            )
            outgoing.fail(error, tell_peer=True)
            return
        outgoing.again(frame)
        self.ready(outgoing)

    def answered(self, header: Header, reason: str) -> None:
        outgoing = self.transfers.get(header.transfer)
        if outgoing is None:
            return
        self.progress_at = self._loop.time()
        if header.kind == Kind.COMPLETE:
            outgoing.completed()
        else:
            outgoing.fail(_REFUSALS.get(header.extra, TransportError)(reason), tell_peer=False)

    def lost(self, stream: SendStream, error: TransportError) -> None:
        """What the connection carried goes out again on the others; a new one is dialled."""
        if stream.closed:
            return
        stream.close()
        self.streams.remove(stream)
        if not self.streams:
            self.alone_since = self._loop.time()
        for frame in stream.unacknowledged():
            if frame.failed() and not frame.outgoing.ended:
                frame.outgoing.again(frame)
        for outgoing in stream.attached:
            outgoing.finish_again()
            if outgoing.has_work:
                self._ready[outgoing.number] = outgoing
        self._window_full = False
        self._short.set()
        self._wake()

    # -- for the upkeep ------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Some transfer has something to send that no connection has taken."""
        return bool(self._ready)

    def attach(self, outgoing: Outgoing) -> None:
        """Tell the peer of a transfer before its first segment is ready: it can refuse at once, and knows
        that its sender lives."""
        if self.streams:
            stream = min(self.streams, key=lambda stream: stream.unacked_bytes)
            stream.attached.add(outgoing)
            stream.push(outgoing.attach_frame())

    def fail_all(self, error: TransportError) -> None:
        for outgoing in list(self.transfers.values()):
            outgoing.fail(error, tell_peer=False)

    # -- the shared queue ----------------------------------------------------------------------

    @property
    def _unacked_bytes(self) -> int:
        return sum(stream.unacked_bytes for stream in self.streams)

    def _only(self) -> Outgoing | None:
        return next(iter(self._ready.values()), None)

    def _batch(self, outgoing: Outgoing, stream: SendStream, budget: int) -> list[Frame]:
        frames: list[Frame] = []
        if outgoing not in stream.attached:
            stream.attached.add(outgoing)
            frames.append(outgoing.attach_frame())
        while budget > 0 and (frame := outgoing.next_frame(budget)) is not None:
            frames.append(frame)
            budget -= frame.size_bytes
        return frames

    def _wake(self) -> None:
        """One idle connection at a time; each wakes the next while there is more to take."""
        idle = [stream for stream in self.streams if stream.idle]
        if idle:
            min(idle, key=lambda stream: (stream.unacked_bytes, -stream.answered_at)).wake()

    def _unblock(self) -> None:
        if self._window_full:
            self._window_full = False
            self._wake()

    # -- the connections -----------------------------------------------------------------------

    async def _dial(self) -> None:
        """One more connection. Raises PeerLost, or the handshake's error."""
        sock, theirs = await dial(self.peer, self._terms, timeout_s=self._settings.connect_timeout_s)
        self._window_bytes = min(self._settings.window_bytes, theirs.window_bytes)
        self._max_frame_bytes = min(self._settings.max_frame_bytes, theirs.frame_bytes)
        self._add(SendStream(sock, self, self._settings))

    def _add(self, stream: SendStream) -> None:
        self.streams.append(stream)
        if len(self.streams) < self._wanted:
            self._short.set()
        if self._ready:
            stream.wake()

    async def _keep_connected(self) -> None:
        """Dial what is missing, as long as there is a peer or something for it."""
        pause_s = _BACKOFF_S[0]
        while True:
            await self._short.wait()
            missing = self._wanted - len(self.streams)
            if missing <= 0 or not (self.streams or self.transfers):
                self._short.clear()
                continue
            if await self._dial_more(missing):
                pause_s = _BACKOFF_S[0]
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _BACKOFF_S[1])

    async def _dial_more(self, count: int) -> bool:
        """True when all were made. A peer that turned out to be the wrong one ends every transfer."""
        async with self._dialling:
            results = await asyncio.gather(*(self._dial() for _ in range(count)), return_exceptions=True)
        errors = [result for result in results if result is not None]
        for error in errors:
            if not isinstance(error, TransportError):
                raise error
            if isinstance(error, HandshakeError) and not self.streams:
                self.fail_all(error)
        return not errors
