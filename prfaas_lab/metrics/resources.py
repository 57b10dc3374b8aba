"""What the links, the engines and the machine did, folded from their samples.

Samples are totals. What counts is the workload: what was carried before it (to measure a link) and
after it (to verify) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from prfaas_lab.metrics.events import (
    EngineDied,
    EngineSampled,
    EngineStarted,
    LinkChanged,
    LinkMeasured,
    LinkSampled,
    MachineSampled,
    PathSampled,
)
from prfaas_lab.metrics.percentiles import Sketch

PEAK_S = 0.99
Stage = Literal["before", "during", "after"]
"""Where the workload stands when a sample is taken."""


@dataclass(slots=True, kw_only=True)
class Direction:
    """One direction of a link."""

    link: str
    source: str
    measured: LinkMeasured | None = None
    reasons: tuple[str, ...] = ()
    last: LinkSampled | None = None
    base: LinkSampled | None = None
    closed: bool = False
    peak_bps: float = 0.0
    """The highest rate over a second."""
    peak_mark: LinkSampled | None = None
    configured_bits: float = 0.0
    """What the configured rate would have carried since the first sample of the workload."""
    most_bits: float = 0.0
    """The same, with the higher of the two rates wherever it changed."""
    sampled_s: float = 0.0
    unshaped: bool = False
    changes: int = 0
    worst_late_s: float = 0.0
    estimates: int = 0
    estimate_errors: float = 0.0
    """Sum of what the senders' estimates of its rate were off by, as shares of the rate configured then."""

    def measure(self, event: LinkMeasured) -> None:
        self.measured = event
        self.reasons += event.reasons

    def change(self, event: LinkChanged) -> None:
        self.changes += 1
        self.worst_late_s = max(self.worst_late_s, event.at_s - event.due_s)

    def estimate(self, event: PathSampled, stage: Stage) -> None:
        """Only what is asked of a backlogged link says anything of its rate."""
        if stage == "during" and event.backlogged and event.egress_bps and event.configured_bps:
            self.estimates += 1
            self.estimate_errors += abs(event.egress_bps / event.configured_bps - 1)

    def sample(self, event: LinkSampled, stage: Stage) -> None:
        if self.closed:
            return
        if stage == "before":
            self.base = event
        else:
            self._accrue(event)
            self.closed = stage == "after"
        self.last = event

    def _accrue(self, event: LinkSampled) -> None:
        """Between two samples the rate configured at the first holds."""
        self.unshaped |= event.configured_bps is None
        if self.last is None or event.at_s <= self.last.at_s:
            return
        gap_s = event.at_s - self.last.at_s
        then, now = self.last.configured_bps or 0.0, event.configured_bps or 0.0
        self.sampled_s += gap_s
        self.configured_bits += gap_s * then
        self.most_bits += gap_s * max(then, now)
        self._peak(event, self.last)

    def _peak(self, event: LinkSampled, last: LinkSampled) -> None:
        since = self.peak_mark = self.peak_mark or last
        if event.at_s - since.at_s >= PEAK_S:
            rate_bps = 8 * (event.bytes_total - since.bytes_total) / (event.at_s - since.at_s)
            self.peak_bps = max(self.peak_bps, rate_bps)
            self.peak_mark = event

    @property
    def carried_bytes(self) -> int:
        """Bytes of the workload, headers included. What was still queued when it started is not its."""
        queued_bytes = self.base.backlog_bytes if self.base else 0
        return max(0, self._since("bytes_total") - queued_bytes)

    @property
    def carried_packets(self) -> int:
        return self._since("packets_total")

    @property
    def dropped_packets(self) -> int:
        return self._since("dropped_total")

    @property
    def retransmitted_segments(self) -> int | None:
        """TCP segments sent again by the source datacenter's nodes, over all its links; None where nothing
        counts them."""
        if self.last is None or self.last.retransmitted_total is None:
            return None
        return self._since("retransmitted_total")

    @property
    def configured_bps(self) -> float | None:
        """The rate of its spec or its egress cap, at the start; None when unshaped or never seen."""
        first = self.measured or self.base or self.last
        return first.configured_bps if first else None

    @property
    def utilization(self) -> float | None:
        """Bits carried as a share of what the configured rate, as it changed, could carry."""
        if self.unshaped or self.configured_bits <= 0:
            return None
        return 8 * self.carried_bytes / self.configured_bits

    def _since(self, counter: str) -> int:
        if self.last is None or self.last is self.base:
            return 0
        total: int = getattr(self.last, counter)
        return total - ((getattr(self.base, counter) or 0) if self.base else 0)


@dataclass(slots=True)
class CpuUse:
    """What a process got of the CPUs during the workload."""

    base: tuple[float, float, float] | None = None
    """(at_s, on a CPU, waiting for one) at the last sample before the workload, or else its first."""
    last: tuple[float, float, float] | None = None

    def sample(self, at_s: float, cpu_s: float | None, waited_s: float | None, stage: Stage) -> None:
        if cpu_s is None or waited_s is None or stage == "after":
            return
        self.last = (at_s, cpu_s, waited_s)
        if stage == "before" or self.base is None:
            self.base = self.last

    @property
    def cpu_fraction(self) -> float | None:
        """Cores' worth of CPU time; None when it was not sampled twice."""
        return self._share(1)

    @property
    def wait_fraction(self) -> float | None:
        """Time that it was runnable but waited for a CPU, of the workload's (over 1 when several threads
        wait); None when it was not sampled twice."""
        return self._share(2)

    def _share(self, which: int) -> float | None:
        if self.base is None or self.last is None or self.last[0] <= self.base[0]:
            return None
        return max(0.0, self.last[which] - self.base[which]) / (self.last[0] - self.base[0])


@dataclass(slots=True, kw_only=True)
class Engine:
    """One engine process."""

    name: str
    started: EngineStarted | None = None
    died: EngineDied | None = None
    last: EngineSampled | None = None
    base: EngineSampled | None = None
    cpu: CpuUse = field(default_factory=CpuUse)
    closed: bool = False

    def sample(self, event: EngineSampled, stage: Stage) -> None:
        self.cpu.sample(event.at_s, event.cpu_s, event.waited_s, stage)
        if self.closed:
            return
        if stage == "before":
            self.base = event
        self.last = event
        self.closed = stage == "after"

    @property
    def tokens(self) -> int:
        """Tokens of the workload: prefilled or decoded, as its role is."""
        if self.last is None:
            return 0
        return self.last.tokens_total - (self.base.tokens_total if self.base else 0)

    def busy_fraction(self, workload_started_s: float) -> float | None:
        """Share of the workload's time that it was computing; None when it was not sampled."""
        if self.last is None:
            return None
        start_s = self.base.at_s if self.base else workload_started_s
        busy_s = self.last.busy_s - (self.base.busy_s if self.base else 0.0)
        return busy_s / (self.last.at_s - start_s) if self.last.at_s > start_s else None


@dataclass(slots=True, kw_only=True)
class Machine:
    """How the machine bore the workload."""

    cpu: Sketch = field(default_factory=Sketch)
    timer_lag: Sketch = field(default_factory=Sketch)

    def sample(self, event: MachineSampled, stage: Stage) -> None:
        if stage == "during":
            self.cpu.add(event.cpu_fraction)
            self.timer_lag.add(event.timer_lag_s)
