"""How a path fares: what the kernel says of each connection, and what follows for the whole.

`read_connection` parses TCP_INFO; `PathMonitor` turns two readings in a row into an estimate of the
egress that the path offers, and into the signals of congestion that a router can act on.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

FULL = 0.9
"""Share of what a path gives from which it is full."""
_TCP_INFO_BYTES = 256
_WIRE_HEADER_BYTES = 66
"""Ethernet, IPv4 and TCP with timestamps: what a segment costs a shaper beyond its payload."""
_BUSY = 0.8
"""Share of an interval that connections must have had bytes in flight for it to say what the path gives."""
_BUSY_WINDOW_S = 1.0
"""Busy intervals are averaged over this long: shapers and BBR both work in bursts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSample:
    """TCP_INFO of one connection. Counters run from its start; a field the kernel lacks is 0."""

    rtt_s: float
    min_rtt_s: float
    cwnd_bytes: int
    mss_bytes: int
    in_flight_bytes: int
    unsent_bytes: int
    delivery_rate_bps: float
    acked_bytes: int
    sent_bytes: int
    retransmitted_bytes: int
    retransmits: int
    busy_s: float
    receiver_limited_s: float
    buffer_limited_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSample:
    """A path, that is all connections to one peer, over the last sampling interval."""

    at_s: float
    connections: int
    throughput_bps: float
    """What was acknowledged, as it loads a link (headers included)."""
    available_bps: float | None
    """What the path gives when asked for all it has; None until it was asked."""
    backlog_bytes: int
    """Handed over and not acknowledged."""
    rtt_s: float
    min_rtt_s: float
    loss: float
    """Share of the sent bytes that were sent again."""
    receiver_limited: float
    """Share of the busy time in which the receiver's window was the limit."""
    buffer_limited: float = 0.0
    """Share of the busy time in which the send buffer was the limit."""
    delivery_rate_bps: float = 0.0
    """The kernel's own estimate, summed over the connections."""
    cwnd_bytes: int = 0
    retransmits: int = 0
    """Packets sent again in the interval."""
    backlogged: bool = False
    """More was waiting throughout than a round trip carries: the throughput is what the path gives."""

    @property
    def utilisation(self) -> float:
        """Throughput as a share of what is available (0 while that is unknown)."""
        return min(1.0, self.throughput_bps / self.available_bps) if self.available_bps else 0.0

    @property
    def queueing_delay_s(self) -> float:
        return max(0.0, self.rtt_s - self.min_rtt_s)

    @property
    def drain_s(self) -> float:
        """How long a byte handed over now would wait for those before it."""
        return self.backlog_bytes * 8 / self.available_bps if self.available_bps else 0.0

    @property
    def congested(self) -> bool:
        """The path is full, and it shows: a standing queue of half a round trip, or loss above 1 %."""
        queueing = self.queueing_delay_s > max(0.005, self.min_rtt_s / 2)
        return self.utilisation > FULL and (queueing or self.loss > 0.01)


def read_connection(sock: socket.socket) -> ConnectionSample:
    return parse_tcp_info(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES))


def parse_tcp_info(raw: bytes) -> ConnectionSample:
    """Kernels append to the structure and never reorder it: what an old one lacks reads as 0."""
    raw = raw.ljust(_TCP_INFO_BYTES, b"\0")
    snd_mss, _, unacked = struct.unpack_from("=3I", raw, 16)
    rtt_us, _, _, cwnd = struct.unpack_from("=4I", raw, 68)
    (total_retrans,) = struct.unpack_from("=I", raw, 100)
    (acked,) = struct.unpack_from("=Q", raw, 120)
    unsent, min_rtt_us = struct.unpack_from("=2I", raw, 144)
    delivery_rate, busy_us, receiver_us, buffer_us = struct.unpack_from("=4Q", raw, 160)
    sent, retransmitted = struct.unpack_from("=2Q", raw, 200)
    return ConnectionSample(
        rtt_s=rtt_us / 1e6,
        min_rtt_s=(rtt_us if min_rtt_us == 2**32 - 1 else min_rtt_us) / 1e6,
        cwnd_bytes=cwnd * snd_mss,
        mss_bytes=snd_mss,
        in_flight_bytes=unacked * snd_mss,
        unsent_bytes=unsent,
        delivery_rate_bps=delivery_rate * 8.0,
        acked_bytes=acked,
        sent_bytes=sent,
        retransmitted_bytes=retransmitted,
        retransmits=total_retrans,
        busy_s=busy_us / 1e6,
        receiver_limited_s=receiver_us / 1e6,
        buffer_limited_s=buffer_us / 1e6,
    )


@dataclass(frozen=True, slots=True)
class _Interval:
    """What changed between two readings, over the connections that were there for both."""

    span_s: float
    wire_bytes: float
    sent_bytes: int
    retransmitted_bytes: int
    busy_s: float
    longest_busy_s: float
    receiver_limited_s: float
    buffer_limited_s: float
    retransmits: int


class PathMonitor:
    """Follows one path. Feed it all connections' readings at a regular pace.

    Only an interval in which bytes were waiting throughout tells what the path can give; others
    can merely show that it gives more than was thought.
    """

    def __init__(self) -> None:
        self._before: Mapping[object, ConnectionSample] = {}
        self._before_at_s = 0.0
        self._backlog_bytes = 0
        self._busy: deque[_Interval] = deque()
        self._available_bps: float | None = None

    def observe(
        self, at_s: float, connections: Mapping[object, ConnectionSample], *, backlog_bytes: int
    ) -> PathSample:
        """`at_s` grows from call to call; `connections` by any key that stays with a connection."""
        interval = _between(self._before, connections, at_s - self._before_at_s)
        self._before, self._before_at_s = connections, at_s
        throughput_bps = interval.wire_bytes * 8 / interval.span_s if interval.span_s > 0 else 0.0
        asked_for_all = _asked_for_all(interval)
        self._learn(interval, throughput_bps, asked_for_all)
        flowing = [c for c in connections.values() if c.in_flight_bytes] or list(connections.values())
        rtt_s = sum(c.rtt_s for c in flowing) / max(1, len(flowing))
        waiting_bytes, self._backlog_bytes = min(self._backlog_bytes, backlog_bytes), backlog_bytes
        return PathSample(
            at_s=at_s,
            connections=len(connections),
            throughput_bps=throughput_bps,
            available_bps=self._available_bps,
            backlog_bytes=backlog_bytes,
            rtt_s=rtt_s,
            min_rtt_s=min((c.min_rtt_s for c in connections.values()), default=0.0),
            loss=_share(interval.retransmitted_bytes, interval.sent_bytes),
            receiver_limited=_share(interval.receiver_limited_s, interval.busy_s),
            buffer_limited=_share(interval.buffer_limited_s, interval.busy_s),
            delivery_rate_bps=sum(c.delivery_rate_bps for c in connections.values()),
            cwnd_bytes=sum(c.cwnd_bytes for c in connections.values()),
            retransmits=interval.retransmits,
            backlogged=asked_for_all and waiting_bytes > max(1.0, throughput_bps / 8 * rtt_s),
        )

    def _learn(self, interval: _Interval, throughput_bps: float, asked_for_all: bool) -> None:
        if asked_for_all:
            self._busy.append(interval)
            while sum(i.span_s for i in self._busy) - self._busy[0].span_s >= _BUSY_WINDOW_S:
                self._busy.popleft()
            span_s = sum(i.span_s for i in self._busy)
            self._available_bps = sum(i.wire_bytes for i in self._busy) * 8 / span_s
        else:
            self._busy.clear()
            if self._available_bps is not None:
                self._available_bps = max(self._available_bps, throughput_bps)


def _asked_for_all(interval: _Interval) -> bool:
    """Bytes were in flight throughout, and the receiver took them."""
    held_back = interval.receiver_limited_s > interval.busy_s / 2
    return interval.span_s > 0 and interval.longest_busy_s >= _BUSY * interval.span_s and not held_back


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _between(
    before: Mapping[object, ConnectionSample], now: Mapping[object, ConnectionSample], span_s: float
) -> _Interval:
    pairs = [(before[key], sample) for key, sample in now.items() if key in before]
    return _Interval(
        span_s=span_s if before else 0.0,
        wire_bytes=sum((b.acked_bytes - a.acked_bytes) * _wire_factor(b) for a, b in pairs),
        sent_bytes=sum(b.sent_bytes - a.sent_bytes for a, b in pairs),
        retransmitted_bytes=sum(b.retransmitted_bytes - a.retransmitted_bytes for a, b in pairs),
        busy_s=sum(b.busy_s - a.busy_s for a, b in pairs),
        longest_busy_s=max((b.busy_s - a.busy_s for a, b in pairs), default=0.0),
        receiver_limited_s=sum(b.receiver_limited_s - a.receiver_limited_s for a, b in pairs),
        buffer_limited_s=sum(b.buffer_limited_s - a.buffer_limited_s for a, b in pairs),
        retransmits=sum(b.retransmits - a.retransmits for a, b in pairs),
    )


def _wire_factor(sample: ConnectionSample) -> float:
    return 1 + _WIRE_HEADER_BYTES / sample.mss_bytes if sample.mss_bytes else 1.0
