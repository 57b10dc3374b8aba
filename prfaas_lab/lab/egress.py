"""What a link gives to all engines that send over it, from what each one's connections tell.

An engine sees only its own share of a link. While any of them has more to send than the link takes,
what they get together is what the link gives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prfaas_lab.transport.congestion import PathSample

WINDOW = 10
"""Rounds of 100 ms that an estimate is averaged over: shapers and BBR both work in bursts."""


def told(paths: Mapping[tuple[str, int], PathSample]) -> list[dict[str, Any]]:
    """An engine's paths, as JSON in its state."""
    return [
        {
            "host": host,
            **asdict(sample),
            "utilisation": sample.utilisation,
            "queueing_delay_s": sample.queueing_delay_s,
            "congested": sample.congested,
        }
        for (host, _), sample in paths.items()
    ]


@dataclass(frozen=True, slots=True)
class Estimate:
    """One direction of a link, as its senders see it: throughput over the last second, what it gives
    when asked for all it has (None until it was), whether that shows, and whether it is asked now."""

    throughput_bps: float
    available_bps: float | None
    congested: bool
    backlogged: bool = False


class Egress:
    """Follows one direction of a link. Feed it a round of all samples at a regular pace."""

    def __init__(self) -> None:
        self._throughputs: deque[float] = deque(maxlen=WINDOW)
        self._asked: deque[float] = deque(maxlen=WINDOW)
        self._available_bps: float | None = None

    def observe(self, samples: Iterable[Mapping[str, Any]]) -> Estimate:
        """What `told` gave of every path over it, in one round."""
        samples = list(samples)
        throughput_bps = sum(sample["throughput_bps"] for sample in samples)
        self._throughputs.append(throughput_bps)
        backlogged = any(sample["backlogged"] for sample in samples)
        if backlogged:
            self._asked.append(throughput_bps)
            self._available_bps = sum(self._asked) / len(self._asked)
        else:
            self._asked.clear()
        return Estimate(
            throughput_bps=sum(self._throughputs) / len(self._throughputs),
            available_bps=self._available_bps,
            congested=any(sample["congested"] for sample in samples),
            backlogged=backlogged,
        )
