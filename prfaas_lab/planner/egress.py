"""What a way between datacenters is believed to give, from what its senders measure (paper, 3.4).

Nobody has to say that a way has become narrower: while more waits for it than it takes, what gets through is
what it gives. When nothing waits, that says only that it gives at least this much; so the belief grows by
`PROBE` a look, up to the configured rate, until the way is asked for all it has again. From a share s of
the rate it is back within ln(1/s) / ln(PROBE) looks: 49 from a hundredth.

A way is *dead* when it is configured down, or when bytes wait for it and less than `DEAD_SHARE` of its
rate gets through. It lives again when twice that does, or when nothing waits for it any more: then nothing
says that it is dead, and the next request finds out.
"""

from __future__ import annotations

from dataclasses import dataclass

PROBE = 1.1
DEAD_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at a way. `measured_bps` is None until it was first asked for all it has."""

    up: bool = True
    configured_bps: float | None = None
    throughput_bps: float = 0.0
    measured_bps: float | None = None
    backlogged: bool = False
    """More waits for it now than it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What is believed of it. `rate_bps` is None while nothing bounds it."""

    rate_bps: float | None = None
    throughput_bps: float = 0.0
    up: bool = True
    measured: bool = False
    """Whether the rate is what it was last seen to give, rather than what it is configured to."""

    @property
    def utilization(self) -> float:
        """Of what it is believed to give, 0 to 1."""
        return min(1.0, self.throughput_bps / self.rate_bps) if self.rate_bps else 0.0

    def wait_s(self, size_bytes: float) -> float:
        """How long so much takes to cross; 0 while nothing bounds it."""
        return 8 * size_bytes / self.rate_bps if self.rate_bps else 0.0


def look(before: Way, seen: Reading) -> Way:
    """What to believe after one more reading."""
    rate_bps, measured = _believed(before, seen)
    return Way(
        rate_bps=rate_bps, throughput_bps=seen.throughput_bps, up=_lives(before, seen), measured=measured
    )


def _believed(before: Way, seen: Reading) -> tuple[float | None, bool]:
    most = seen.configured_bps
    if seen.backlogged and seen.measured_bps is not None:
        least = DEAD_SHARE * most if most else 1.0
        rate_bps = max(least, seen.measured_bps)
    elif before.measured and before.rate_bps is not None:
        rate_bps = max(before.rate_bps * PROBE, seen.throughput_bps)
    else:
        return most, False
    return (rate_bps, True) if most is None or rate_bps < most else (most, False)


def _lives(before: Way, seen: Reading) -> bool:
    if not seen.up or seen.configured_bps == 0:
        return False
    if not seen.backlogged or seen.measured_bps is None:
        return True
    whole = seen.configured_bps or before.rate_bps or seen.measured_bps
    return seen.measured_bps > DEAD_SHARE * whole * (1 if before.up else 2)
