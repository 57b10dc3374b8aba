"""TCP as a fluid has it: headers, windows, loss, and the time that a new connection takes to its pace."""

from __future__ import annotations

import math

from prfaas_lab.fabric.fluid import Piece
from prfaas_lab.fabric.shape import ACHIEVABLE, Shape
from prfaas_lab.spec.topology import GilbertElliott

SEGMENT_BYTES = 1448
INITIAL_WINDOW_BYTES = 10 * SEGMENT_BYTES
DIAL_RTTS = 3.0
"""Until a new connection can be used: TCP's handshake, and two round trips of the transport's own."""


def goodput(rate_bps: float) -> float:
    """Payload bytes a second of a nominal rate."""
    return rate_bps * ACHIEVABLE / 8


def most(rtt_s: float, kept: float, connections: int, window_bytes: float) -> float:
    """Bytes/s of one transfer, as its connections' windows allow, and the share of packets that is kept
    (Mathis et al. 1997)."""
    if rtt_s <= 0:
        return math.inf
    windows = connections * window_bytes / rtt_s
    if kept >= 1:
        return windows
    return min(windows, connections * SEGMENT_BYTES / rtt_s * math.sqrt(1.5 / (1 - kept)))


def ramp_s(pace: float, rtt_s: float, connections: int) -> float:
    """What new connections lose: handshakes, and doubling each round trip up to a pace in bytes/s."""
    doublings = math.log2(max(1.0, pace * rtt_s / (connections * INITIAL_WINDOW_BYTES)))
    return float(rtt_s * (DIAL_RTTS + doublings))


def loss(shape: Shape) -> float:
    """Share of the packets that a link loses, in the long run."""
    lost = shape.loss
    if isinstance(lost, GilbertElliott):
        bad = lost.p / (lost.p + lost.r) if lost.p + lost.r else 0.0
        return bad * lost.loss_bad + (1 - bad) * lost.loss_good
    return lost


def late(made: list[Piece], late_s: float) -> list[Piece]:
    """The same pieces, begun so much later: what was made meanwhile is there at once."""
    ready, left = 0, list(made)
    while left and late_s > 0.0:
        seconds, size = left.pop(0)
        if seconds > late_s:
            done = round(size * late_s / seconds)
            left.insert(0, (seconds - late_s, size - done))
            ready += done
            break
        ready, late_s = ready + size, late_s - seconds
    return [(0.0, ready), *left] if ready else left
