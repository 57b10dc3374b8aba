"""What one direction of a link does to packets, as a queue on a clock that is passed in.

A packet first waits for the transmitter, which sends at the current rate, and then flies for the
delay. When the transmitter will be done is computed from the rate in force, never stored with a
packet: a change of rate holds at once for everything that still waits, as on a real router.
Packets never overtake each other. Standard library only: this runs in the shaper's own process.
"""

from __future__ import annotations

import math
from collections import deque
from random import Random
from typing import Generic, NamedTuple, TypeVar

P = TypeVar("P")
"""What stands for a packet: its bytes, or whatever else is to be delivered in its time."""

UNLIMITED_BYTES = 64 * 2**20
"""What a direction without a queue limit (no rate to derive it from) may hold all the same."""
CREDIT_S = 0.001
"""How far back the idle transmitter may start for a packet that was read late."""


class Conditions(NamedTuple):
    """`fabric.shape.Shape` as plain numbers, for a process that does not load the spec's library."""

    rate_bps: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    distribution: str = "uniform"
    correlation: float = 0.0
    loss_good: float = 0.0
    loss_bad: float = 0.0
    good_to_bad: float = 0.0
    bad_to_good: float = 1.0
    limit_bytes: int | None = None


class Waiting(NamedTuple, Generic[P]):
    packet: P
    wire_bytes: int
    segments: int
    offered_at: float


class Flying(NamedTuple, Generic[P]):
    due: float
    packet: P
    wire_bytes: int
    segments: int


class LinkQueue(Generic[P]):
    """One direction. Every time is in seconds of one monotonic clock, and never runs backwards."""

    def __init__(self, conditions: Conditions, random: Random) -> None:
        self._random = random
        self._waiting: deque[Waiting[P]] = deque()
        self._flying: deque[Flying[P]] = deque()
        self._waiting_bytes = self._flying_bytes = 0
        self._head_finish, self._head_left_bytes, self._head_marked_at = math.inf, 0.0, 0.0
        self._idle_since = self._last_due = -math.inf
        self._bad, self._jitter_state = False, random.gauss(0, 1)
        self.offered_bytes = self.offered_packets = 0
        self.bytes_total = self.packets_total = self.dropped_bytes = self.dropped_total = 0
        self._apply(conditions)

    @property
    def backlog_bytes(self) -> int:
        """Bytes that wait for the transmitter or fly."""
        return self._waiting_bytes + self._flying_bytes

    @property
    def backlog_packets(self) -> int:
        return sum(p.segments for p in self._waiting) + sum(p.segments for p in self._flying)

    def offer(self, packet: P, wire_bytes: int, segments: int, now: float, since: float) -> bool:
        """Take a packet that arrived between `since` and `now`; False when it is lost or finds no room."""
        self.offered_bytes += wire_bytes
        self.offered_packets += segments
        self._transmit(now)
        held = self._waiting_bytes + min(self._flying_bytes, self._flying_share_bytes)
        if held + wire_bytes > self._limit_bytes or (self._lossy and self._is_lost()):
            self.dropped_bytes += wire_bytes
            self.dropped_total += segments
            return False
        if not self._waiting:
            started = max(self._idle_since, since, now - CREDIT_S)
            self._head_left_bytes, self._head_marked_at = wire_bytes, started
            self._head_finish = started + wire_bytes * self._seconds_per_byte
        self._waiting.append(Waiting(packet, wire_bytes, segments, now))
        self._waiting_bytes += wire_bytes
        return True

    def release(self, now: float) -> list[P]:
        """The packets that have reached the far end by now, in order."""
        self._transmit(now)
        flying = self._flying
        arrived: list[P] = []
        while flying and flying[0].due <= now:
            _, packet, wire_bytes, segments = flying.popleft()
            self._flying_bytes -= wire_bytes
            self.bytes_total += wire_bytes
            self.packets_total += segments
            arrived.append(packet)
        return arrived

    def undelivered(self, wire_bytes: int, segments: int) -> None:
        """A released packet found no receiver: it was dropped after all."""
        self.bytes_total -= wire_bytes
        self.packets_total -= segments
        self.dropped_bytes += wire_bytes
        self.dropped_total += segments

    def next_due(self) -> float:
        """When to call `release` next, at the latest; infinity when nothing can arrive."""
        if self._flying:
            return self._flying[0].due
        return self._head_finish + self._least_delay_s

    def change(self, conditions: Conditions, now: float) -> None:
        """Hold the new conditions from now on. What waits and flies keeps its place."""
        self._transmit(now)
        if self._waiting and self._head_marked_at < now:
            self._head_left_bytes -= (now - self._head_marked_at) / self._seconds_per_byte
            self._head_marked_at = now
        self._apply(conditions)
        if self._waiting:
            self._head_finish = self._head_marked_at + self._head_left_bytes * self._seconds_per_byte

    def _apply(self, new: Conditions) -> None:
        self._conditions = new
        self._seconds_per_byte = 0.0 if new.rate_bps is None else _inverse(new.rate_bps / 8)
        self._least_delay_s = 0.0 if new.jitter_s else new.delay_s
        self._limit_bytes = UNLIMITED_BYTES if new.limit_bytes is None else new.limit_bytes
        # After a drop in rate the line still holds what the old rate put there: it must not fill
        # the new, smaller queue, or a slower link would first be a dead one.
        self._flying_share_bytes = (
            math.inf if new.rate_bps is None else new.rate_bps * (new.delay_s + new.jitter_s) / 8
        )
        self._lossy = bool(new.loss_good or new.loss_bad)

    def _transmit(self, now: float) -> None:
        waiting = self._waiting
        while self._head_finish <= now:
            packet, wire_bytes, segments, offered_at = waiting.popleft()
            finish = self._head_finish
            self._waiting_bytes -= wire_bytes
            self._fly(packet, wire_bytes, segments, max(finish, offered_at))
            if waiting:
                self._head_left_bytes, self._head_marked_at = waiting[0].wire_bytes, finish
                self._head_finish = finish + waiting[0].wire_bytes * self._seconds_per_byte
            else:
                self._idle_since, self._head_finish = finish, math.inf

    def _fly(self, packet: P, wire_bytes: int, segments: int, sent_at: float) -> None:
        due = sent_at + self._conditions.delay_s
        if self._conditions.jitter_s:
            due = max(sent_at, due + self._conditions.jitter_s * self._deviation())
        self._last_due = max(due, self._last_due)
        self._flying.append(Flying(self._last_due, packet, wire_bytes, segments))
        self._flying_bytes += wire_bytes

    def _deviation(self) -> float:
        """A draw of the jitter's distribution, correlated with the last: a normal AR(1) process,
        mapped through its own distribution function, so that every marginal is exact."""
        correlation = self._conditions.correlation
        fresh = self._random.gauss(0, 1)
        self._jitter_state = z = correlation * self._jitter_state + math.sqrt(1 - correlation**2) * fresh
        return _DISTRIBUTIONS[self._conditions.distribution](z)

    def _is_lost(self) -> bool:
        """Random loss is the Gilbert-Elliott chain that never leaves its good state."""
        terms, draw = self._conditions, self._random.random
        if terms.good_to_bad:
            self._bad = draw() >= terms.bad_to_good if self._bad else draw() < terms.good_to_bad
        return draw() < (terms.loss_bad if self._bad else terms.loss_good)


def _inverse(rate: float) -> float:
    return 1 / rate if rate else math.inf


def _uniform(z: float) -> float:
    return math.erf(z / math.sqrt(2))


def _normal(z: float) -> float:
    return z


def _pareto(z: float) -> float:
    """Shape 3, centred, cut at 4: the table that iproute2 gives to netem."""
    survival = max(0.5 * math.erfc(z / math.sqrt(2)), 1e-12)
    return float(min((survival ** (-1 / 3) - 1.5) * 4 / 3, 4.0))


def _paretonormal(z: float) -> float:
    return 0.25 * _normal(z) + 0.75 * _pareto(z)


_DISTRIBUTIONS = {
    "uniform": _uniform, "normal": _normal, "pareto": _pareto, "paretonormal": _paretonormal,
}  # fmt: skip
