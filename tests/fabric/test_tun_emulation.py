"""The tun shaper between two real namespaces: its process, its counters, and how it bears company.

What every shaper must do is in test_fabric_emulation; here is what is particular to this one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
from tries import best

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric import namespaces, sysctl
from prfaas_lab.fabric.cross_traffic import CrossTraffic
from prfaas_lab.fabric.flood import Flood
from prfaas_lab.fabric.probes import Way, goodput_bps
from prfaas_lab.fabric.shape import ACHIEVABLE, Counters, LinkEnd, LinkEnds, Shape
from prfaas_lab.fabric.tun import TunShaper

pytestmark = pytest.mark.emulation

MBIT = 1e6
FRAME_BYTES = 1514


class Pair:
    """Two gateways and the links between them (a `cross_traffic.Network`)."""

    shaper = "tun"

    def __init__(self, tun: TunShaper, one: str, other: str) -> None:
        self.tun, self._netns = tun, {"east": one, "west": other}

    def link(self, name: str, number: int = 0) -> LinkEnds:
        ends = [
            LinkEnd(datacenter=dc, netns=netns, interface=f"wan{number}", address=f"10.77.{number}.{host}/30")
            for host, (dc, netns) in enumerate(self._netns.items(), 1)
        ]
        return LinkEnds(name=name, ends=(ends[0], ends[1]))

    def way(self, link: str, source: str) -> Way:
        here, there = ("10.77.0.1", "10.77.0.2") if source == "east" else ("10.77.0.2", "10.77.0.1")
        return Way(
            source=partial(self.socket, source),
            destination=partial(self.socket, self.far_end(link, source)),
            listen=(there, 0),
            dial=(there, 0),
            bind=here,
        )

    def far_end(self, _: str, source: str) -> str:
        return "west" if source == "east" else "east"

    def socket(self, node: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        return namespaces.socket_in(self._netns[node], socket.AF_INET, kind)

    def counters(self) -> Counters:
        return self.tun.counters("wan", "east")

    def change(self, shape: Shape) -> float:
        return self.tun.change("wan", "east", shape)

    def flood(self, rate_bps: float) -> Flood:
        destination = self.socket("west", socket.SOCK_DGRAM)
        destination.bind(("10.77.0.2", 0))
        return Flood(self.socket("east", socket.SOCK_DGRAM), destination, rate_bps)


@contextlib.contextmanager
def linked(forward: Shape, backward: Shape | None = None) -> Iterator[Pair]:
    tag = secrets.token_hex(3)
    names, tun = [f"tt-{tag}-{end}" for end in "ab"], TunShaper(seed=1)
    try:
        for name in names:
            namespaces.create(name)
            sysctl.router(name, window_bytes=16 * 2**20)
        pair = Pair(tun, *names)
        tun.attach(pair.link("wan"), forward, backward or forward)
        yield pair
    finally:
        tun.close()
        for name in names:
            namespaces.delete(name)


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


@pytest.mark.realtime
def test_delay_and_rate_hold_beside_busy_processes() -> None:
    """The kernel's own arrival times tell, so that only the shaper has to wake on time."""
    with linked(Shape(rate_bps=20 * MBIT, delay_s=0.025, queue_bytes=200_000)) as pair, busy(3):

        def measure() -> None:
            with pair.flood(1 * MBIT) as trickle:
                time.sleep(0.5)
            delays_s = [arrival.delay_s for arrival in trickle.arrivals]
            serialised_s = FRAME_BYTES * 8 / (20 * MBIT)
            assert statistics.median(delays_s) == pytest.approx(0.025 + serialised_s, rel=0.02)
            with pair.flood(30 * MBIT) as flood:
                time.sleep(0.8)
                now = time.monotonic()
            rates = [flood.rate_bps(now - 0.5 + i * 0.1, now - 0.4 + i * 0.1) for i in range(5)]
            assert statistics.median(rates) == pytest.approx(20 * MBIT, rel=0.03)

        best(measure)


@pytest.mark.realtime
def test_lossless_gigabit_needs_little_and_is_exact() -> None:
    with linked(Shape(rate_bps=1000 * MBIT, delay_s=0.005)) as pair:
        best(lambda: _near(goodput_bps(pair.way("wan", "east")), 1000 * MBIT * ACHIEVABLE, 0.03))


@pytest.mark.realtime
def test_a_step_down_is_seen_within_50_ms_and_no_window_ever_exceeds_the_rate() -> None:
    fast, slow = (Shape(rate_bps=r * MBIT, delay_s=0.01, queue_bytes=100_000) for r in (20, 5))
    with linked(fast) as pair:

        def step() -> None:
            pair.change(fast)
            with pair.flood(30 * MBIT) as flood:
                time.sleep(0.5)
                at = pair.change(slow)
                time.sleep(0.5)
            before = [flood.rate_bps(at - 0.3 + i * 0.05, at - 0.25 + i * 0.05) for i in range(5)]
            after = [flood.rate_bps(at + 0.05 + i * 0.05, at + 0.1 + i * 0.05) for i in range(8)]
            assert statistics.median(before) == pytest.approx(20 * MBIT, rel=0.03)
            assert statistics.median(after) == pytest.approx(5 * MBIT, rel=0.05)
            assert max(before) < 24 * MBIT
            assert max(after) < 6 * MBIT

        best(step)


@pytest.mark.realtime
def test_an_outage_stops_all_bytes_and_ends_without_a_burst() -> None:
    shape = Shape(rate_bps=20 * MBIT, delay_s=0.01, queue_bytes=200_000)
    with linked(shape) as pair:

        def attempt() -> None:
            with pair.flood(30 * MBIT) as flood:
                time.sleep(0.2)
                stopped = pair.change(Shape(rate_bps=0.0, delay_s=0.01, queue_bytes=200_000))
                time.sleep(0.3)
                resumed = pair.change(shape)
                time.sleep(0.3)
            assert flood.count(stopped + 0.03, resumed) == 0
            assert flood.rate_bps(resumed + 0.02, resumed + 0.22) == pytest.approx(20 * MBIT, rel=0.1)

        best(attempt)


@pytest.mark.realtime
def test_packets_sent_are_packets_received_and_dropped() -> None:
    shape = Shape(rate_bps=20 * MBIT, delay_s=0.005, loss=0.05, queue_bytes=50_000)
    with linked(shape, Shape()) as pair:
        before = pair.counters()
        with pair.flood(30 * MBIT) as flood:
            time.sleep(0.5)
        after = pair.counters()
    assert after.backlog_bytes == 0
    assert after.packets_total - before.packets_total == len(flood.arrivals)
    assert after.dropped_total - before.dropped_total == flood.sent - len(flood.arrivals)
    assert after.bytes_total - before.bytes_total == len(flood.arrivals) * FRAME_BYTES


@pytest.mark.realtime
def test_what_the_kernel_drops_before_a_stopped_process_is_counted() -> None:
    with linked(Shape()) as pair:
        assert pair.tun.pid is not None
        with pair.flood(200 * MBIT) as flood:
            os.kill(pair.tun.pid, signal.SIGSTOP)
            deadline = time.monotonic() + 10
            while flood.sent < 11_000 and time.monotonic() < deadline:  # the device's ring holds 10,000
                time.sleep(0.01)
            os.kill(pair.tun.pid, signal.SIGCONT)
            time.sleep(0.2)
        dropped = pair.counters().dropped_total
    assert dropped >= 900


@pytest.mark.realtime
def test_the_queue_never_holds_more_than_its_limit() -> None:
    with linked(Shape(rate_bps=5 * MBIT, queue_bytes=60_000)) as pair, pair.flood(20 * MBIT):
        backlogs = []
        for _ in range(50):
            time.sleep(0.005)
            backlogs.append(pair.counters().backlog_bytes)
    assert 55_000 < max(backlogs) <= 60_000


@pytest.mark.realtime
def test_changes_take_effect_within_10_ms_on_a_full_link() -> None:
    with linked(Shape(rate_bps=20 * MBIT)) as pair, contextlib.closing(CrossTraffic(pair)) as cross:
        cross.start("wan", "east", 30 * MBIT)

        def change_often() -> None:
            delays_s = []
            for i in range(200):
                asked = time.monotonic()
                delays_s.append(pair.change(Shape(rate_bps=(20 + i % 2) * MBIT)) - asked)
            assert statistics.quantiles(delays_s, n=100)[98] < 0.010

        best(change_often)


@pytest.mark.realtime
def test_loss_can_come_and_go_under_a_running_stream() -> None:
    """Bundles are cut only while packets are lost; the stream goes on through both switches."""
    with linked(Shape(rate_bps=300 * MBIT, delay_s=0.002)) as pair:
        way = pair.way("wan", "east")
        best(lambda: _above(goodput_bps(way, windows=3), 200 * MBIT))
        pair.change(Shape(rate_bps=300 * MBIT, delay_s=0.002, loss=0.01))
        lossy, before = goodput_bps(way, windows=3), pair.counters()
        assert lossy > 1 * MBIT
        assert before.dropped_total > 0
        pair.change(Shape(rate_bps=300 * MBIT, delay_s=0.002))
        best(lambda: _near(goodput_bps(way, windows=3), 300 * MBIT * ACHIEVABLE, 0.05))


@pytest.mark.realtime
def test_one_process_carries_a_dozen_links_and_they_vanish_with_it() -> None:
    with linked(Shape(rate_bps=100 * MBIT, delay_s=0.005)) as pair:
        for number in range(1, 12):
            pair.tun.attach(pair.link(f"wan{number}", number), Shape(delay_s=0.001), Shape(delay_s=0.001))
        count = partial(namespaces.call_in, pair._netns["east"], socket.if_nameindex)
        assert len(count()) == 13

        def attempt() -> None:
            with pair.flood(1 * MBIT) as trickle:
                time.sleep(0.2)
            assert statistics.median(a.delay_s for a in trickle.arrivals) == pytest.approx(0.005, abs=0.001)

        best(attempt)
        pair.tun.close()
        assert [name for _, name in count()] == ["lo"]


def test_a_link_whose_namespace_is_deleted_takes_no_other_with_it() -> None:
    with linked(Shape()) as pair:
        lost = f"{pair._netns['west']}-lost"
        namespaces.create(lost)
        east, west = pair.link("lost", 1).ends
        pair.tun.attach(LinkEnds(name="lost", ends=(east, replace(west, netns=lost))), Shape(), Shape())
        namespaces.delete(lost)
        time.sleep(0.1)
        with pair.flood(1 * MBIT) as trickle:
            time.sleep(0.2)
        assert len(trickle.arrivals) == trickle.sent > 0


def test_a_killed_process_is_said_with_its_pid() -> None:
    with linked(Shape()) as pair:
        pid = pair.tun.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(FabricError, match=f"pid {pid}"):
            pair.change(Shape())


def test_the_process_ends_when_its_starter_is_killed() -> None:
    program = (
        "import sys, time\n"
        "from prfaas_lab.fabric.packet_process import PacketProcess\n"
        "process = PacketProcess('tun', 0)\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    with starter.stdout:
        pid = int(starter.stdout.readline())
    assert _lives(pid)
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + 30
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _lives(pid)


@pytest.mark.realtime
def test_udp_cross_traffic_takes_its_rate_from_the_link() -> None:
    with (
        linked(Shape(rate_bps=50 * MBIT, delay_s=0.005)) as pair,
        contextlib.closing(CrossTraffic(pair)) as cross,
    ):
        way = pair.way("wan", "east")
        cross.start("wan", "east", 20 * MBIT)
        time.sleep(0.2)
        best(lambda: _near(_carried_bps(pair), 20 * MBIT, 0.05))
        best(lambda: _near(goodput_bps(way), 30 * MBIT * ACHIEVABLE, 0.10))
        cross.stop("wan", "east", 20 * MBIT)
        best(lambda: _near(goodput_bps(way), 50 * MBIT * ACHIEVABLE, 0.03))


@pytest.mark.realtime
def test_greedy_tcp_cross_traffic_shares_the_link_and_leaves_when_told() -> None:
    with (
        linked(Shape(rate_bps=50 * MBIT, delay_s=0.005)) as pair,
        contextlib.closing(CrossTraffic(pair)) as cross,
    ):
        way = pair.way("wan", "east")
        cross.start("wan", "east", "tcp")
        time.sleep(0.5)
        best(lambda: _above(_carried_bps(pair), 40 * MBIT))
        shared = goodput_bps(way, streams=1, windows=20)
        assert 2 * MBIT < shared < 46 * MBIT
        cross.stop("wan", "east", "tcp")
        best(lambda: _near(goodput_bps(way), 50 * MBIT * ACHIEVABLE, 0.03))
        with pytest.raises(FabricError, match="no such cross traffic"):
            cross.stop("wan", "east", "tcp")


def _carried_bps(pair: Pair) -> float:
    before, began = pair.counters(), time.monotonic()
    time.sleep(0.5)
    return (pair.counters().bytes_total - before.bytes_total) * 8 / (time.monotonic() - began)


def _above(measured: float, least: float) -> None:
    assert measured > least


def _near(measured: float, expected: float, share: float) -> None:
    assert measured == pytest.approx(expected, rel=share)


def _lives(pid: int) -> bool:
    """Whether a process runs (an unreaped one does not)."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
