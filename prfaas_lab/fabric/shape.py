"""What a link direction does to packets, and the seam behind which every shaper does it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

from prfaas_lab.spec.topology import GilbertElliott, Impairment

MTU_BYTES = 1500
FRAME_BYTES = 1514
"""What a kernel shaper counts per full segment: MTU plus the Ethernet header."""
ACHIEVABLE = 0.956
"""TCP goodput of a byte-rate shaper as a share of its nominal rate (headers; facts.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One direction of a link in emulated units (after `scale` and `time_scale`)."""

    rate_bps: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    distribution: Literal["uniform", "normal", "pareto", "paretonormal"] = "uniform"
    delay_correlation: float = 0.0
    loss: float | GilbertElliott = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    queue_bytes: int | None = None
    buffer_s: float = field(default=0.2, compare=False)
    """How long a queue of unknown size takes to empty at full rate."""

    @classmethod
    def of(cls, impairment: Impairment, *, scale: float = 1.0, time_scale: float = 1.0) -> Shape:
        """The shape that emulates a spec: bandwidth and queue shrink by `scale`, and stretching time
        by `time_scale` lengthens delays and slows rates alike, so that every byte still takes its
        (stretched) real time."""
        rate, queue = impairment.rate, impairment.queue
        return cls(
            rate_bps=None if rate is None else rate * scale / time_scale,
            delay_s=(impairment.delay or 0.0) * time_scale,
            jitter_s=(impairment.jitter or 0.0) * time_scale,
            distribution=impairment.distribution or "uniform",
            delay_correlation=impairment.delay_correlation or 0.0,
            loss=impairment.loss or 0.0,
            reorder=impairment.reorder or 0.0,
            duplicate=impairment.duplicate or 0.0,
            corrupt=impairment.corrupt or 0.0,
            queue_bytes=None if queue is None else max(math.ceil(queue * scale), 2 * FRAME_BYTES),
            buffer_s=cls().buffer_s * time_scale,
        )

    @property
    def limit_bytes(self) -> int | None:
        """The queue limit in force: as given, else what the delay line and `buffer_s` hold at full rate,
        and never less than 64 full frames; None when neither is known."""
        if self.queue_bytes is not None:
            return self.queue_bytes
        if self.rate_bps is None:
            return None
        held_s = self.delay_s + self.jitter_s + self.buffer_s
        return max(math.ceil(self.rate_bps * held_s / 8), 64 * FRAME_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What one direction has carried since it was made."""

    bytes_total: int
    packets_total: int
    dropped_total: int
    backlog_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEnd:
    """One end of a link: the gateway's namespace, and the interface to be made there."""

    datacenter: str
    netns: str
    interface: str
    address: str
    """IPv4 address with prefix length, e.g. `10.77.128.1/30`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEnds:
    """A link to be made between two gateways. `ends[0]` is the source of the forward direction."""

    name: str
    ends: tuple[LinkEnd, LinkEnd]


class LinkControl(Protocol):
    """Decides what happens to packets on links that are there.

    A direction is named by its link and the datacenter whose packets it carries (`source`). What a
    shaper cannot do it refuses in `check`, before anything is made.
    """

    name: str

    @property
    def pid(self) -> int | None:
        """The process that carries the packets; None when there is none."""

    def check(self, shape: Shape) -> None:
        """Raises FabricError when this shaper cannot do what the shape asks."""

    def change(self, link: str, source: str, shape: Shape) -> float:
        """One in-place change of one direction: no packet is lost to it, no unshaped instant. The
        monotonic time at which it took effect."""

    def counters(self, link: str, source: str) -> Counters:
        """Totals of one direction since it was made."""

    def close(self) -> None:
        """End what the shaper runs (a process, threads). Interfaces go with their namespaces."""


class Shaper(LinkControl, Protocol):
    """Makes links between gateways, too."""

    def attach(self, link: LinkEnds, forward: Shape, backward: Shape) -> None:
        """Make both interfaces, up and addressed, and shape both directions."""
