"""What TCP_INFO says of a path: the estimate follows what the path gives, and only when asked."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.transport.congestion import ConnectionSample, PathMonitor, parse_tcp_info, read_connection

NONE = parse_tcp_info(b"")
MSS = 1448
WIRE = (MSS + 66) / MSS


def reading(at_s: float, rate_bps: float, *, busy: float = 1.0, **fields: float) -> ConnectionSample:
    """A connection that has moved `rate_bps` of payload since time 0, busy for a share of it."""
    moved = int(rate_bps / 8 * at_s)
    settled = {"rtt_s": 0.02, "min_rtt_s": 0.02, **fields}
    return replace(NONE, mss_bytes=MSS, acked_bytes=moved, sent_bytes=moved, busy_s=busy * at_s, **settled)


def watch(monitor: PathMonitor, rate_bps: float, steps: range, *, backlog_bytes: int = 0, **fields: float):
    for step in steps:
        at_s = step / 10
        half = reading(at_s, rate_bps / 2, **fields)
        sample = monitor.observe(at_s, {"a": half, "b": half}, backlog_bytes=backlog_bytes)
    return sample


def test_a_busy_path_gives_what_it_carries_headers_included():
    sample = watch(PathMonitor(), 400e6, range(10))
    assert sample.throughput_bps == pytest.approx(400e6 * WIRE, rel=1e-3)
    assert sample.available_bps == pytest.approx(400e6 * WIRE, rel=1e-3)
    assert sample.utilisation == pytest.approx(1.0, rel=1e-3)


def test_a_path_that_was_never_asked_for_all_it_has_is_unknown():
    sample = watch(PathMonitor(), 10e6, range(10), busy=0.1)
    assert sample.available_bps is None
    assert sample.utilisation == sample.drain_s == 0


def test_idleness_does_not_lower_the_estimate_and_a_slower_link_does():
    monitor = PathMonitor()
    watch(monitor, 400e6, range(20))
    before = monitor.observe(2.0, {}, backlog_bytes=0).available_bps
    assert watch(monitor, 1e6, range(21, 40), busy=0.01).available_bps == before
    slower = watch(monitor, 100e6, range(40, 70))
    assert slower.available_bps == pytest.approx(100e6 * WIRE, rel=1e-2)


def test_a_receiver_that_holds_back_says_nothing_of_the_path():
    monitor = PathMonitor()
    for step in range(10):
        held = reading(step / 10, 50e6, receiver_limited_s=step / 10)
        sample = monitor.observe(step / 10, {"a": held}, backlog_bytes=0)
    assert sample.available_bps is None
    assert sample.receiver_limited == pytest.approx(1.0)


def test_a_standing_queue_on_a_full_path_is_congestion_and_a_full_path_alone_is_not():
    assert not watch(PathMonitor(), 400e6, range(10)).congested
    queued = watch(PathMonitor(), 400e6, range(10), rtt_s=0.05)
    assert queued.congested
    assert queued.queueing_delay_s == pytest.approx(0.03)


def test_the_backlog_drains_at_the_available_rate():
    sample = watch(PathMonitor(), 80e6 / WIRE, range(10), backlog_bytes=10_000_000)
    assert sample.drain_s == pytest.approx(1.0, rel=1e-2)


def test_a_connection_that_comes_or_goes_does_not_bend_the_rate():
    monitor = PathMonitor()
    monitor.observe(1.0, {"a": reading(1.0, 8e6), "old": reading(1.0, 900e6)}, backlog_bytes=0)
    sample = monitor.observe(2.0, {"a": reading(2.0, 8e6), "new": reading(2.0, 900e6)}, backlog_bytes=0)
    assert sample.throughput_bps == pytest.approx(8e6 * WIRE, rel=1e-3)


@given(st.binary(max_size=300))
def test_any_length_of_the_structure_reads_as_zero_where_it_ends(raw):
    sample = parse_tcp_info(raw)
    assert sample.rtt_s == (struct.unpack_from("=I", raw, 68)[0] / 1e6 if len(raw) >= 72 else sample.rtt_s)
    if len(raw) <= 16:
        assert sample == NONE


def test_a_real_connection_reads_sensibly():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as sock,
        server.accept()[0] as there,
    ):
        sock.sendall(b"x" * 10_000)
        received = 0
        while received < 10_000:
            received += len(there.recv(10_000))
        sample = read_connection(sock)
    assert sample.sent_bytes == 10_000
    assert 0 < sample.min_rtt_s <= sample.rtt_s + 0.1
    assert sample.cwnd_bytes >= sample.mss_bytes > 500
    assert sample.retransmitted_bytes == 0


def test_a_path_is_backlogged_only_while_more_waits_than_a_round_trip_carries():
    assert watch(PathMonitor(), 80e6, range(10), backlog_bytes=10_000_000).backlogged
    assert not watch(PathMonitor(), 80e6, range(10), backlog_bytes=50_000).backlogged
    assert not watch(PathMonitor(), 80e6, range(10), backlog_bytes=10_000_000, busy=0.5).backlogged
