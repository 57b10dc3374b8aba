"""The sender of cross traffic: a process of its own, started by `packet_process`.

It works at ordinary priority, as other tenants' machines would not take CPU from ours.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from typing import Any, Protocol

from prfaas_lab.fabric.packet_child import Parent

DATAGRAM_BYTES, FRAME_BYTES = 1472, 1514
PACE_S = 0.001
LATEST_S = 0.02
"""What a sender that was kept waiting makes up for, and no more: not a burst, but a gap."""
CHUNK_BYTES = 2**18
_NOTHING, _DATAGRAM = bytes(CHUNK_BYTES), bytes(DATAGRAM_BYTES)


class Flow(Protocol):
    """Something that sends."""

    def sockets(self) -> tuple[list[socket.socket], list[socket.socket]]:
        """(to be read, to be written)."""

    def go_on(self, now: float, ready: set[socket.socket]) -> float | None:
        """Send; the time of the next turn, or None to wait for the sockets."""

    def close(self) -> None:
        """Stop."""


class Datagrams:
    """UDP at a rate, counted as on the wire. It never backs off."""

    def __init__(
        self, rate_bps: float, to: tuple[str, int], sender: socket.socket, receiver: socket.socket
    ) -> None:
        self._bytes_per_s, self._sender, self._receiver = rate_bps / 8, sender, receiver
        sender.setblocking(False)
        sender.connect(to)
        self._owed_bytes, self._counted_at = 0.0, time.monotonic()

    def sockets(self) -> tuple[list[socket.socket], list[socket.socket]]:
        return [], []

    def go_on(self, now: float, _: set[socket.socket]) -> float:
        self._owed_bytes += min(now - self._counted_at, LATEST_S) * self._bytes_per_s
        self._counted_at = now
        while self._owed_bytes >= FRAME_BYTES:
            self._owed_bytes -= FRAME_BYTES
            with contextlib.suppress(OSError):  # the socket's buffer is full: lost, as on any network
                self._sender.send(_DATAGRAM)
        wait_s = (FRAME_BYTES - self._owed_bytes) / self._bytes_per_s if self._bytes_per_s else 1.0
        return now + max(wait_s, PACE_S)

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()


class Stream:
    """Greedy TCP: sends whatever the connection takes, and throws it away at the other end."""

    def __init__(self, to: tuple[str, int], sender: socket.socket, listener: socket.socket) -> None:
        self._sender, self._listener = sender, listener
        self._receiver: socket.socket | None = None
        self._broken = False
        for end in (sender, listener):
            end.setblocking(False)
        sender.connect_ex(to)

    def sockets(self) -> tuple[list[socket.socket], list[socket.socket]]:
        if self._broken:
            return [], []
        return [self._receiver or self._listener], [self._sender]

    def go_on(self, _: float, ready: set[socket.socket]) -> None:
        try:
            if self._listener in ready:
                self._receiver, _peer = self._listener.accept()
            elif self._receiver is not None and self._receiver in ready:
                self._receiver.recv(CHUNK_BYTES, socket.MSG_TRUNC)  # not even copied
            if self._sender in ready:
                self._sender.send(_NOTHING)
        except BlockingIOError:
            pass
        except OSError:  # TCP has given the link up
            self._broken = True

    def close(self) -> None:
        # A reset: what is still unsent shall not go on.
        self._sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for end in (self._sender, self._listener, self._receiver):
            if end is not None:
                end.close()


class Flows:
    """All that run."""

    def __init__(self) -> None:
        self._running: dict[int, Flow] = {}
        self._next_turn: float | None = None

    def serve(self, request: dict[str, Any], descriptors: list[int]) -> None:
        """Do what a request of `CrossTraffic` says."""
        match request["do"]:
            case "start":
                sender, receiver = (socket.socket(fileno=d) for d in descriptors)
                self._running[request["flow"]] = _make(request, sender, receiver)
                self._next_turn = 0.0
            case "stop":
                self._running.pop(request["flow"]).close()

    def wait(self, parent: Parent) -> tuple[list[int], set[socket.socket]]:
        """Until somebody can send, has to, or the parent speaks."""
        reading: list[Any] = [*parent.descriptors]
        writing: list[Any] = []
        for flow in self._running.values():
            more_reading, more_writing = flow.sockets()
            reading += more_reading
            writing += more_writing
        wait_s = None if self._next_turn is None else max(0.0, self._next_turn - time.monotonic())
        readable, writable, _ = select.select(reading, writing, [], wait_s)
        spoken = [d for d in readable if isinstance(d, int)]
        return spoken, {s for s in (*readable, *writable) if isinstance(s, socket.socket)}

    def go_on(self, ready: set[socket.socket]) -> None:
        now = time.monotonic()
        turns = [flow.go_on(now, ready) for flow in self._running.values()]
        self._next_turn = min((turn for turn in turns if turn is not None), default=None)


def _make(request: dict[str, Any], sender: socket.socket, receiver: socket.socket) -> Flow:
    to, traffic = tuple(request["to"]), request["traffic"]
    if traffic == "tcp":
        return Stream(to, sender, receiver)
    return Datagrams(traffic, to, sender, receiver)


def main() -> None:
    parent, flows = Parent(), Flows()
    while not parent.gone:
        spoken, ready = flows.wait(parent)
        parent.heed(spoken, flows.serve)
        flows.go_on(ready)


if __name__ == "__main__":
    main()
