"""The relay shaper between loopback addresses: real sockets, real time, no privilege."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tries import best

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.link_queue import Conditions
from prfaas_lab.fabric.packet_child import COUNTER_FIELDS
from prfaas_lab.fabric.relay import RelayRoute, RelayShaper
from prfaas_lab.fabric.relay_lane import Item, Kind, Lane
from prfaas_lab.fabric.relay_process import Relay
from prfaas_lab.fabric.shape import Shape
from prfaas_lab.spec.topology import GilbertElliott

FORWARD, BACKWARD = ("wan", "east"), ("wan", "west")
TIMEOUT_S = 10.0


@contextlib.contextmanager
def relayed(
    serve: Callable[[socket.socket], None] | None,
    forward: Shape,
    backward: Shape | None = None,
    *,
    hops: int = 1,
) -> Iterator[tuple[RelayShaper, tuple[str, int]]]:
    """A relay before a server that calls `serve` on each connection; yields the address to dial."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(server, serve), daemon=True).start()
    here, nobody = _reserved("127.0.0.2"), _reserved("127.0.0.1")
    shaper, address = RelayShaper(), here.getsockname()
    names = [("wan" + "+" * i) for i in range(hops)]
    route = RelayRoute(
        listen=address,
        target=(server if serve else nobody).getsockname(),
        forward=tuple((name, "east") for name in names),
        backward=tuple((name, "west") for name in reversed(names)),
    )
    try:
        shapes = {(name, "east"): forward for name in names}
        shaper.serve([route], shapes | {(name, "west"): backward or forward for name in names})
        yield shaper, address
    finally:
        shaper.close()
        for sock in (server, here, nobody):
            sock.close()


def _accept(server: socket.socket, serve: Callable[[socket.socket], None] | None) -> None:
    with contextlib.suppress(OSError):
        while serve is not None:
            connection, _ = server.accept()
            connection.settimeout(TIMEOUT_S)
            threading.Thread(target=_call, args=(serve, connection), daemon=True).start()


def _call(serve: Callable[[socket.socket], None], connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        serve(connection)


def _reserved(host: str) -> socket.socket:
    """Holds a port on which nobody listens, unless with SO_REUSEADDR too, as the relay does."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, 0))
    return sock


def dial(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, timeout=TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def echo(connection: socket.socket) -> None:
    while received := connection.recv(65536):
        connection.sendall(received)


def count(connection: socket.socket) -> None:
    """Read to the end, then answer how many bytes came: a half-close must get through."""
    total = 0
    while received := connection.recv(2**20):
        total += len(received)
    connection.sendall(str(total).encode())


def send_and_finish(address: tuple[str, int], size_bytes: int) -> tuple[int, float]:
    """(bytes the server counted, seconds until it said so)."""
    with dial(address) as connection:
        started = time.monotonic()
        connection.sendall(bytes(size_bytes))
        connection.shutdown(socket.SHUT_WR)
        return int(connection.recv(100)), time.monotonic() - started


@pytest.mark.realtime
def test_a_round_trip_takes_both_delays() -> None:
    with relayed(echo, Shape(delay_s=0.02), Shape(delay_s=0.01)) as (_, address), dial(address) as connection:
        assert shortest_trip_s(connection) == pytest.approx(0.03, rel=0.05, abs=0.001)


@pytest.mark.realtime
def test_hops_add_up() -> None:
    with relayed(echo, Shape(delay_s=0.01), hops=3) as (_, address), dial(address) as connection:
        assert shortest_trip_s(connection) == pytest.approx(0.06, rel=0.05, abs=0.001)


def shortest_trip_s(connection: socket.socket) -> float:
    """The best of many: other work on this machine can only make one longer."""
    trips = []
    for _ in range(21):
        started = time.monotonic()
        connection.sendall(b"ping")
        assert connection.recv(4) == b"ping"
        trips.append(time.monotonic() - started)
    return min(trips)


@pytest.mark.realtime
def test_goodput_is_that_of_a_kernel_shaper_and_shared_by_all_connections() -> None:
    size_bytes = 2_000_000
    with relayed(count, Shape(rate_bps=100e6, delay_s=0.005)) as (shaper, address):

        def attempt() -> None:
            before, started = shaper.counters(*FORWARD), time.monotonic()
            flows = [threading.Thread(target=send_and_finish, args=(address, size_bytes)) for _ in range(3)]
            for flow in flows:
                flow.start()
            for flow in flows:
                flow.join()
            took_s, after = time.monotonic() - started, shaper.counters(*FORWARD)
            carried_bytes = after.bytes_total - before.bytes_total
            assert carried_bytes == pytest.approx(3 * size_bytes * 1514 / 1448, rel=0.01)
            assert (after.dropped_total, after.backlog_bytes) == (0, 0)
            assert 3 * size_bytes * 8 / (took_s - 0.02) == pytest.approx(95.6e6, rel=0.03)

        best(attempt)


def test_every_byte_arrives_in_order_both_ways() -> None:
    message = bytes(i % 251 for i in range(1_000_000))
    received = bytearray()
    with (
        relayed(echo, Shape(rate_bps=200e6, delay_s=0.002), hops=2) as (_, address),
        dial(address) as connection,
    ):
        writer = threading.Thread(target=lambda: (connection.sendall(message), connection.shutdown(1)))
        writer.start()
        while chunk := connection.recv(65536):
            received += chunk
        writer.join()
    assert received == message


def test_a_half_close_crosses_behind_the_bytes_before_it() -> None:
    with relayed(count, Shape(delay_s=0.02)) as (_, address):
        assert send_and_finish(address, 100_000)[0] == 100_000


def test_a_reset_by_the_server_reaches_the_client() -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    with relayed(reset, Shape(delay_s=0.01)) as (_, address), dial(address) as connection:
        connection.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_reset_by_the_client_reaches_the_server() -> None:
    seen: list[str] = []
    done = threading.Event()

    def watch(connection: socket.socket) -> None:
        try:
            connection.recv(1)
            connection.recv(1)
        except ConnectionResetError:
            seen.append("reset")
        finally:
            done.set()

    with relayed(watch, Shape(delay_s=0.01)) as (_, address):
        with dial(address) as connection:
            connection.sendall(b"x")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        assert done.wait(TIMEOUT_S)
    assert seen == ["reset"]


def test_a_refused_destination_resets_the_client_after_a_round_trip() -> None:
    with relayed(None, Shape(delay_s=0.02)) as (_, address):
        started = time.monotonic()
        with dial(address) as connection, pytest.raises(ConnectionResetError):
            connection.recv(1)
        assert time.monotonic() - started >= 0.039


def test_a_full_link_stops_the_sender_instead_of_filling_memory() -> None:
    shape = Shape(rate_bps=1e6, delay_s=0.01, queue_bytes=100_000)
    with relayed(count, shape) as (shaper, address), dial(address) as connection:
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.sendall(bytes(20_000_000))
        assert shaper.counters(*FORWARD).backlog_bytes <= 100_000


def test_a_receiver_that_does_not_read_stops_the_sender() -> None:
    hold = threading.Event()

    def ignore(_: socket.socket) -> None:
        hold.wait(TIMEOUT_S)

    with relayed(ignore, Shape()) as (_, address), dial(address) as connection:
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.sendall(bytes(64_000_000))
        hold.set()


@pytest.mark.realtime
def test_a_rate_step_takes_effect_at_once_and_an_outage_stops_all_bytes() -> None:
    with relayed(count, Shape(rate_bps=100e6)) as (shaper, address), dial(address) as connection:
        threading.Thread(target=_pour, args=(connection,), daemon=True).start()

        def attempt() -> None:
            shaper.change(*FORWARD, Shape(rate_bps=100e6))
            time.sleep(0.1)
            before = time.monotonic()
            at = shaper.change(*FORWARD, Shape(rate_bps=20e6))
            assert before <= at <= time.monotonic()
            assert _rate(shaper, 0.3) == pytest.approx(20e6, rel=0.1)
            shaper.change(*FORWARD, Shape(rate_bps=50e6))
            assert _rate(shaper, 0.3) == pytest.approx(50e6, rel=0.1)

        best(attempt)
        shaper.change(*FORWARD, Shape(rate_bps=0.0))
        assert _rate(shaper, 0.1) == 0
        shaper.change(*FORWARD, Shape(rate_bps=50e6))
        best(lambda: _flows(shaper, 50e6))


def test_the_answer_to_a_change_comes_with_all_that_crossed_before_it() -> None:
    """Or whoever reads the counters next takes those bytes for bytes of an outage."""
    counters = memoryview(bytearray(8 * COUNTER_FIELDS)).cast("Q")
    relay = Relay(counters, seed=1)
    relay.serve({"do": "change", "slot": 0, "conditions": Conditions(rate_bps=8e9)}, [])
    lane = relay.lanes[0]
    lane.queue.offer(Item(Nowhere((lane,)), Kind.BYTES, bytes(986), 1000, 0), 1000, 1, 0.0, 0.0)
    relay.serve({"do": "change", "slot": 0, "conditions": Conditions(rate_bps=0.0)}, [])
    assert counters[0] == 1000
    relay.pass_bytes(time.monotonic())
    assert counters[0] == 1000


class Nowhere:
    """A stream whose bytes nobody reads."""

    def __init__(self, lanes: tuple[Lane, ...]) -> None:
        self.lanes = lanes

    def deliver(self, kind: Kind, content: bytes, now: float) -> None:
        pass

    def resume(self, now: float) -> None:
        pass


def _pour(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(bytes(65536))


def _flows(shaper: RelayShaper, rate_bps: float) -> None:
    assert _rate(shaper, 0.3) == pytest.approx(rate_bps, rel=0.1)


def _rate(shaper: RelayShaper, seconds: float) -> float:
    first, started = shaper.counters(*FORWARD).bytes_total, time.monotonic()
    time.sleep(seconds)
    return (shaper.counters(*FORWARD).bytes_total - first) * 8 / (time.monotonic() - started)


@pytest.mark.parametrize(
    "shape",
    [Shape(loss=0.01), Shape(loss=GilbertElliott(p=0.1, r=0.5)), Shape(reorder=0.1), Shape(corrupt=0.1)],
)
def test_what_a_stream_cannot_show_is_refused(shape: Shape) -> None:
    with pytest.raises(FabricError, match="relay shaper cannot"):
        RelayShaper().check(shape)


def test_an_address_in_use_is_said_with_its_name() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        address = taken.getsockname()
        route = RelayRoute(listen=address, target=address, forward=(), backward=())
        shaper = RelayShaper()
        try:
            with pytest.raises(FabricError, match=f"cannot listen on 127.0.0.2:{address[1]}"):
                shaper.serve([route], {})
        finally:
            shaper.close()


def test_closing_ends_the_process_and_every_connection() -> None:
    with relayed(echo, Shape()) as (shaper, address), dial(address) as connection:
        connection.sendall(b"x")
        connection.recv(1)
        shaper.close()
        assert shaper.pid is None
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_a_shaper_process_that_was_killed_is_told_with_the_counters() -> None:
    with relayed(lambda connection: None, Shape(rate_bps=None, delay_s=0.0)) as (shaper, _):
        assert shaper.counters(*FORWARD).bytes_total == 0
        assert shaper.pid is not None
        os.kill(shaper.pid, signal.SIGKILL)
        os.waitid(os.P_PID, shaper.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(FabricError, match="has ended; exit status -9"):
            shaper.counters(*FORWARD)
