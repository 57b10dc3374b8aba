"""More datagrams than a link can carry: what arrives, and when, shows the shaping bare of TCP."""

from __future__ import annotations

import bisect
import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass
from types import TracebackType

DATAGRAM_BYTES = 1472
"""Payload of a full packet."""
OVERHEAD_BYTES = 42
"""UDP, IP and Ethernet headers."""
PACE_S = 0.001
QUEUE_BYTES = 32 * 2**20
SO_TIMESTAMPNS, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 35, 32, 33
_TIME = struct.Struct("=qq")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One datagram at its destination."""

    at_s: float
    """When the kernel took it from the wire, on the monotonic clock."""
    number: int
    """Its place among those sent."""
    delay_s: float
    """Since its sender gave it to the kernel."""


class Flood:
    """Datagrams at a steady rate from one socket to another, while the `with` block lasts.

    `destination` must be bound. The arrival times are the kernel's own, so a reader that is kept
    waiting for its CPU spoils nothing.
    """

    def __init__(
        self, source: socket.socket, destination: socket.socket, rate_bps: float, *,
        datagram_bytes: int = DATAGRAM_BYTES, drain_s: float = 0.5,
    ) -> None:  # fmt: skip
        self.sent = 0
        self.arrivals: list[Arrival] = []
        self.wire_bytes = datagram_bytes + OVERHEAD_BYTES
        self._source, self._destination, self._drain_s = source, destination, drain_s
        self._interval_s = self.wire_bytes * 8 / rate_bps
        self._payload_bytes = datagram_bytes
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._offset_s = time.time() - time.monotonic()
        self._threads = [threading.Thread(target=target) for target in (self._send, self._receive)]

    def rate_bps(self, start_s: float, end_s: float) -> float:
        """Bits per second on the wire that arrived between two monotonic times."""
        return self.count(start_s, end_s) * self.wire_bytes * 8 / (end_s - start_s)

    def count(self, start_s: float, end_s: float) -> int:
        """Datagrams that arrived between two monotonic times."""
        times = [arrival.at_s for arrival in self.arrivals]
        return bisect.bisect_left(times, end_s) - bisect.bisect_left(times, start_s)

    def __enter__(self) -> Flood:
        self._source.connect(self._destination.getsockname())
        _enlarge(self._source, SO_SNDBUFFORCE, socket.SO_SNDBUF)
        _enlarge(self._destination, SO_RCVBUFFORCE, socket.SO_RCVBUF)
        self._destination.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._source.setblocking(False)
        self._destination.settimeout(0.05)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._threads[0].join()
        time.sleep(self._drain_s)
        self._stopped.set()
        self._threads[1].join()
        self._source.close()
        self._destination.close()

    def _send(self) -> None:
        filler, begin, skipped = bytes(self._payload_bytes - 16), time.monotonic(), 0
        while not self._stopping.is_set():
            now = time.monotonic()
            due = int((now - begin) / self._interval_s) - skipped
            if due - self.sent > 0.05 / self._interval_s + 16:  # kept waiting long: no burst to make up
                skipped += due - self.sent - 1
            with contextlib.suppress(BlockingIOError):
                for number in range(self.sent, int((now - begin) / self._interval_s) - skipped):
                    self._source.send(struct.pack("=qd", number, time.monotonic()) + filler)
                    self.sent = number + 1
            self._stopping.wait(PACE_S)

    def _receive(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                payload, control, _, _ = self._destination.recvmsg(16, 128)
                number, sent_s = struct.unpack("=qd", payload)
                at_s = _kernel_time_s(control) - self._offset_s
                self.arrivals.append(Arrival(at_s, number, at_s - sent_s))


def _kernel_time_s(control: list[tuple[int, int, bytes]]) -> float:
    for level, kind, value in control:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIME.unpack(value[: _TIME.size])
            return float(seconds + nanoseconds * 1e-9)
    return time.time()


def _enlarge(end: socket.socket, forced: int, polite: int) -> None:
    """A buffer that outlasts a wait for the CPU, and a sender that its own queued packets never stop."""
    try:
        end.setsockopt(socket.SOL_SOCKET, forced, QUEUE_BYTES)
    except PermissionError:
        end.setsockopt(socket.SOL_SOCKET, polite, QUEUE_BYTES)
