"""One relayed connection: two sockets, a stream each way, and how ends and resets cross.

What the kernel does with flags on a real path is done with items on the lanes: a destination is
dialled when the OPEN arrives there, a half-close and a reset travel behind the bytes before them.
"""

from __future__ import annotations

import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from prfaas_lab.fabric.relay_lane import Kind, Lane, send, turn

SOCKET_BUFFER_BYTES = 2**18
OUTBOX_BYTES = 2**18
"""What may wait for a receiver that does not read, before its sender is not read either."""


class Poller(Protocol):
    """Who tells sockets about their events."""

    def watch(self, sock: socket.socket, events: int, heed: Callable[[int, float], None]) -> None:
        """Call `heed(events, now)` on these events from now on; no events, no calls."""

    def forget(self, sock: socket.socket) -> None:
        """The socket is about to be closed."""


class Way:
    """One way of a connection: what `source` reads crosses the lanes to `sink`."""

    def __init__(self, lanes: tuple[Lane, ...]) -> None:
        self.lanes = lanes
        self.source: Side | None = None
        self.sink: Side | None = None
        self.dial: Callable[[float], None] | None = None

    def deliver(self, kind: Kind, content: bytes, now: float) -> None:
        if kind is Kind.OPEN and self.dial is not None:
            self.dial(now)
        elif self.sink is not None:
            self.sink.take(kind, content, now)

    def resume(self, now: float) -> None:
        if self.source is not None:
            self.source.resume(now)


class Side:
    """One of the two sockets: fills one way, drains the other."""

    def __init__(self, sock: socket.socket, fills: Way, drains: Way, poller: Poller) -> None:
        self._socket, self._fills, self._poller = sock, fills, poller
        fills.source, drains.sink = self, self
        self._drains = drains
        self._connecting = self._reading = False
        self._lacks_room = self._lacks_receiver = False
        self._read_done = self._write_done = self._ending = self.closed = False
        self._outbox: deque[memoryview] = deque()
        self._outbox_bytes = 0
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def clogged(self) -> bool:
        """Its receiver does not read."""
        return self._outbox_bytes > OUTBOX_BYTES

    def connect(self, target: tuple[str, int], now: float) -> None:
        """Dial; tell the other side how it went."""
        self._connecting = True
        self._socket.connect_ex(target)
        self._watch()

    def take(self, kind: Kind, content: bytes, now: float) -> None:
        """Do what has come from the other side."""
        if self.closed:
            return
        if kind is Kind.BYTES:
            self._outbox.append(memoryview(content))
            self._outbox_bytes += len(content)
            self._flush(now)
        elif kind is Kind.RESET:
            self.reset()
        elif kind is Kind.END:
            self._ending = True
            self._flush(now)
        else:
            self._reading = True
            self._watch()

    @property
    def reads(self) -> bool:
        return self._reading and not (self.closed or self._lacks_room or self._lacks_receiver)

    def resume(self, now: float) -> None:
        """Read again, after having waited for room on a lane."""
        self._lacks_room = False
        self._read(now)
        self._watch()

    def unclog(self) -> None:
        """Read again: the receiver does."""
        self._lacks_receiver = False
        self._watch()

    def reset(self) -> None:
        """Close at once; the peer sees a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close()

    def _heed(self, events: int, now: float) -> None:
        if self._connecting:
            self._connected(now)
        elif events & select.EPOLLOUT:
            self._flush(now)
        if events & ~select.EPOLLOUT:
            self._read(now)
        self._watch()

    def _connected(self, now: float) -> None:
        self._connecting = False
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(now)
            return
        self._reading = True
        send(self._fills, Kind.OPEN, b"", now)

    def _read(self, now: float) -> None:
        """One turn: whoever has more to send comes again after the others."""
        if not self.reads:
            return
        receiver = self._fills.sink
        size_bytes, full = turn(self._fills.lanes)
        if receiver is not None and receiver.clogged:
            self._lacks_receiver = True
        elif full is not None:
            self._lacks_room = True
            full.wait(self._fills)
        else:
            self._read_now(size_bytes, now)

    def _read_now(self, size_bytes: int, now: float) -> None:
        try:
            content = self._socket.recv(size_bytes)
        except BlockingIOError:
            return
        except OSError:
            self._fail(now)
            return
        if content:
            send(self._fills, Kind.BYTES, content, now)
            return
        self._reading, self._read_done = False, True
        send(self._fills, Kind.END, b"", now)
        self._close_if_done()

    def _flush(self, now: float) -> None:
        try:
            while self._outbox:
                sent = self._socket.send(self._outbox[0])
                self._outbox_bytes -= sent
                self._outbox[0] = self._outbox[0][sent:]
                if not self._outbox[0]:
                    self._outbox.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._fail(now)
            return
        if self._ending and not self._outbox and not self._write_done:
            self._write_done = True
            self._end_writing(now)
        if not self.clogged and self._drains.source is not None:
            self._drains.source.unclog()
        self._watch()

    def _end_writing(self, now: float) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._fail(now)
            return
        self._close_if_done()

    def _fail(self, now: float) -> None:
        """The peer has reset, refused or vanished: the other side sees a reset."""
        if not self.closed:
            self._close()
            send(self._fills, Kind.RESET, b"", now)

    def _close_if_done(self) -> None:
        if self._read_done and self._write_done:
            self._close()

    def _close(self) -> None:
        self.closed = True
        self._outbox.clear()
        self._outbox_bytes = 0
        self._poller.forget(self._socket)
        self._socket.close()

    def _watch(self) -> None:
        if self.closed:
            return
        events = select.EPOLLIN if self.reads else 0
        if self._connecting or self._outbox:
            events |= select.EPOLLOUT
        self._poller.watch(self._socket, events, self._heed)


def join(
    client: socket.socket, target: tuple[str, int],
    forward: tuple[Lane, ...], backward: tuple[Lane, ...], poller: Poller, now: float,
) -> None:  # fmt: skip
    """Relay an accepted connection. It lives as long as a socket of it is watched, or items fly."""
    up, down = Way(forward), Way(backward)
    Side(client, up, down, poller)

    def dial(now: float) -> None:
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        Side(server, down, up, poller).connect(target, now)

    up.dial = dial
    send(up, Kind.OPEN, b"", now)
