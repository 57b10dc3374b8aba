"""Traffic that measures: an echo for round trips, bulk TCP for goodput. Plain sockets, one thread.

Who calls makes the sockets, so the same traffic measures any namespace and any shaper.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prfaas_lab.errors import FabricError

DIAL_TIMEOUT_S = 10.0
BLOCK_BYTES = 1 << 18
READ_BYTES = 1 << 14
"""A receiver is woken for no less: a dozen packets, 1.3 ms of 100 Mbit/s."""
ECHO_BYTES = 16
MakeSocket = Callable[[], socket.socket]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """From a source to a destination: how to make sockets there, and where to listen and dial."""

    source: MakeSocket
    destination: MakeSocket
    listen: tuple[str, int]
    dial: tuple[str, int]
    """Port 0: the one that the listener got."""
    bind: str = ""
    """The source's own address, where its packets would else take another way."""


def round_trip_s(
    way: Way,
    *,
    samples: int = 25,
    limit_s: float = 1.0,
    of: Callable[[list[float]], float] = statistics.median,
) -> float:
    """The median (or what `of` says) of up to so many 16-byte echoes over TCP, and at least 5."""
    with _connected(way, 1) as ((near, far),):
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(DIAL_TIMEOUT_S)
        echoing = threading.Thread(target=_echo, args=(far,), name="echo")
        echoing.start()
        try:
            _one_echo_s(near)  # finds the neighbours' addresses
            return of(_echoes_s(near, samples, limit_s))
        finally:
            near.shutdown(socket.SHUT_RDWR)
            echoing.join()


def goodput_bps(
    way: Way, *, streams: int = 4, warm_up_s: float = 0.5, window_s: float = 0.1, windows: int = 10
) -> float:
    """Payload bits per second that several TCP streams bring across: the median of so many windows,
    after a warm-up. A stall of this machine spoils a window or two, and not the median."""
    arrivals = record_stream(way, duration_s=warm_up_s + window_s * windows, streams=streams)
    return windowed_bps(arrivals, warm_up_s, window_s, windows)


def record_stream(
    way: Way, *, duration_s: float, streams: int = 4, stop: threading.Event | None = None
) -> list[tuple[float, int]]:
    """Send as much as several TCP streams take, for so long or until told to stop: records of
    (seconds since the start, bytes received until then)."""
    with _connected(way, streams) as pairs:
        return _pump(pairs, duration_s, stop or threading.Event())


def windowed_bps(arrivals: list[tuple[float, int]], start_s: float, window_s: float, windows: int) -> float:
    """The median over windows of the rate in a record of (time, bytes received until then)."""
    edges = [_bytes_at(arrivals, start_s + i * window_s) for i in range(windows + 1)]
    return statistics.median((after - before) * 8 / window_s for before, after in itertools.pairwise(edges))


def _bytes_at(arrivals: list[tuple[float, int]], at_s: float) -> float:
    """Bytes received by a time, read off the line between the records around it."""
    after = bisect.bisect_left(arrivals, (at_s, 0))
    if after == 0 or after == len(arrivals):
        return float(arrivals[max(after - 1, 0)][1])
    (t0, b0), (t1, b1) = arrivals[after - 1], arrivals[after]
    return b0 + (b1 - b0) * (at_s - t0) / (t1 - t0)


def _pump(
    pairs: list[tuple[socket.socket, socket.socket]], duration_s: float, stop: threading.Event
) -> list[tuple[float, int]]:
    block, into = memoryview(bytes(BLOCK_BYTES)), memoryview(bytearray(BLOCK_BYTES))
    arrivals: list[tuple[float, int]] = [(0.0, 0)]
    received, begin = 0, time.monotonic()
    with selectors.DefaultSelector() as selector:
        for near, far in pairs:
            near.setblocking(False)
            far.setblocking(False)
            # Few wake-ups: a sender sleeps until much fits, a receiver until enough has come.
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, BLOCK_BYTES)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, READ_BYTES)
            selector.register(near, selectors.EVENT_WRITE)
            selector.register(far, selectors.EVENT_READ)
        while arrivals[-1][0] <= duration_s and not stop.is_set():
            for key, events in selector.select(0.05):
                end = key.fileobj
                assert isinstance(end, socket.socket)
                with contextlib.suppress(BlockingIOError):
                    if events & selectors.EVENT_WRITE:
                        end.send(block)
                    else:
                        received += end.recv_into(into)
            arrivals.append((time.monotonic() - begin, received))
    return arrivals


@contextlib.contextmanager
def _connected(way: Way, count: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """So many TCP connections as (source end, destination end), closed at exit."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(way.destination())
        listener.settimeout(DIAL_TIMEOUT_S)
        pairs = []
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(way.listen)
            listener.listen(count)
            address, port = way.dial[0], way.dial[1] or listener.getsockname()[1]
            for _ in range(count):
                near = stack.enter_context(way.source())
                near.settimeout(DIAL_TIMEOUT_S)
                if way.bind:
                    near.bind((way.bind, 0))
                near.connect((address, port))
                pairs.append((near, stack.enter_context(listener.accept()[0])))
        except OSError as error:
            raise FabricError(
                f"no TCP connection to {way.dial[0]} within {DIAL_TIMEOUT_S:.0f} s: {error}",
                remedy="a link with rate 0 or loss 100% at the start cannot be measured",
            ) from error
        yield pairs


def _echo(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while message := end.recv(ECHO_BYTES):
            end.sendall(message)


def _echoes_s(near: socket.socket, samples: int, limit_s: float) -> list[float]:
    begin = time.monotonic()
    times: list[float] = []
    while len(times) < 5 or (len(times) < samples and time.monotonic() < begin + limit_s):
        times.append(_one_echo_s(near))
    return times


def _one_echo_s(near: socket.socket) -> float:
    begin = time.monotonic()
    near.sendall(bytes(ECHO_BYTES))
    missing = ECHO_BYTES
    while missing:
        got = len(near.recv(missing))
        if not got:
            raise FabricError("the echo ended early")
        missing -= got
    return time.monotonic() - begin
