"""Every size, count and deadline of the transport in one frozen value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from prfaas_lab.spec.scenario import TransportSettings

KIB, MIB = 1024, 1024 * 1024

MAX_AUTO_CONNECTIONS = 16
MIN_AUTO_CONNECTIONS = 4
MIN_FRAME_BYTES = 64 * KIB
LEAST_WINDOW_BYTES = 4 * 1448
"""What a connection keeps in flight, however narrow the path (BBR's least window)."""
_TCP_WMEM = Path("/proc/sys/net/ipv4/tcp_wmem")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathHint:
    """What is known of the path to the peers before a byte was sent."""

    rate_bps: float
    rtt_s: float
    pairs: int = 1
    """Pairs of engines that share it."""

    @property
    def bdp_bytes(self) -> int:
        """Bytes in flight that fill the path for one round trip."""
        return math.ceil(self.rate_bps * self.rtt_s / 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Settings of one sender or receiver. Both ends may differ; the stricter one holds."""

    connections: int | None = None
    """TCP connections per peer; None derives them from `path` and the kernel's socket buffers."""
    path: PathHint | None = None
    policy: Literal["fifo", "shortest", "weighted"] = "fifo"
    """Which of several concurrent transfers to one peer the next bytes come from."""

    frame_bytes: int = 256 * KIB
    """What a connection takes from the shared queue at a time, until its rate is known: a part of a
    large segment, or many small ones."""
    frame_time_s: float = 0.005
    """Once its rate is known, a connection takes what it sends in this time (64 KiB to the largest
    frame): long enough to cost little CPU, short enough that all end at nearly the same time."""
    unsent_frames: int = 3
    """What a connection holds unsent in the kernel, in such frames; the most that a slow one keeps back."""
    window_bytes: int = 64 * MIB
    """What a receiver lets one sender have unacknowledged, over all its connections."""

    max_frame_bytes: int = MIB
    max_segment_bytes: int = 1024 * MIB
    max_segments: int = 1_000_000
    max_transfers: int = 4096
    max_connections: int = 1024
    max_attempts: int = 5
    """How often a frame that arrives damaged is sent before the transfer fails."""

    connect_timeout_s: float = 10.0
    """Dialling and shaking hands."""
    reconnect_timeout_s: float = 10.0
    """How long a peer may be without any connection before it counts as lost."""
    progress_timeout_s: float = 30.0
    """How long an open transfer may make no progress."""
    first_byte_timeout_s: float = 600.0
    """How long an expected transfer may take to begin (its request may be queueing for prefill)."""
    stream_timeout_s: float = 5.0
    """How long one connection may hold unacknowledged bytes without progress before it is given up."""
    sample_interval_s: float = 0.1
    """How often TCP_INFO is read."""

    @classmethod
    def of(cls, settings: TransportSettings, path: PathHint | None) -> Limits:
        """As a scenario says."""
        return cls(
            connections=None if settings.connections == "auto" else settings.connections,
            path=path,
            window_bytes=settings.window,
            progress_timeout_s=settings.timeout,
        )

    def frame_bytes_at(self, rate_bps: float) -> int:
        """What a connection of this rate takes at a time."""
        return min(max(int(rate_bps / 8 * self.frame_time_s), MIN_FRAME_BYTES), self.max_frame_bytes)

    def connections_to_peer(self, buffer_bytes: int | None = None) -> int:
        """Fixed, or enough that half the largest send buffer of each (`buffer_bytes`, else this kernel's)
        together covers the BDP, and `MIN_AUTO_CONNECTIONS` at least. Fewer where the least windows of so many
        would not fit a pair's part of the BDP: they only stand in queues, and are lost there."""
        if self.connections is not None:
            return self.connections
        if self.path is None:
            return MIN_AUTO_CONNECTIONS
        wanted = math.ceil(self.path.bdp_bytes / ((buffer_bytes or send_buffer_bytes()) / 2))
        fit = self.path.bdp_bytes // (self.path.pairs * LEAST_WINDOW_BYTES)
        return min(max(1, min(fit, max(wanted, MIN_AUTO_CONNECTIONS))), MAX_AUTO_CONNECTIONS)


def send_buffer_bytes() -> int:
    """The largest send buffer that the kernel's autotuning grants here (4 MiB where unknown)."""
    try:
        return int(_TCP_WMEM.read_text().split()[2])
    except (OSError, ValueError, IndexError):
        return 4 * MIB
