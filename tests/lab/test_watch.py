from __future__ import annotations

from dataclasses import dataclass

from prfaas_lab.fabric.shape import Counters
from prfaas_lab.lab.watch import read_links
from prfaas_lab.metrics.ledger import Ledger


@dataclass(frozen=True)
class Wires:
    """Two links out of `a`, whose egress is capped at 60 Mbit/s, and one back."""

    directions: tuple[tuple[str, str], ...] = (("one", "a"), ("two", "a"), ("one", "b"))

    def nominal_bps(self, link: str, source: str) -> float | None:
        return 60e6 if source == "a" else 80e6

    def counters(self, link: str, source: str) -> Counters:
        return Counters(bytes_total=10, packets_total=1, dropped_total=0, backlog_bytes=0)

    def retransmitted_segments(self, datacenter: str) -> int | None:
        return {"a": 5, "b": None}[datacenter]


def test_a_sample_tells_the_rate_that_the_egress_cap_leaves_and_what_was_sent_again() -> None:
    samples = {(e.link, e.source): e for e in read_links(Wires(), Ledger(lambda: 1.0, 0.0))}
    assert [s.configured_bps for s in samples.values()] == [60e6, 60e6, 80e6]
    assert [s.retransmitted_total for s in samples.values()] == [5, 5, None]
