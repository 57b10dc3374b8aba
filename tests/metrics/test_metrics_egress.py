"""The error of the senders' estimates counts only while a link is backlogged, and during the workload."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from prfaas_lab.metrics.codec import KINDS
from prfaas_lab.metrics.events import PathSampled
from prfaas_lab.metrics.resources import Direction

SAMPLE = PathSampled(
    at_s=1.0, source="p0", destination="d0", link="wan", link_source="east", configured_bps=100e6,
    egress_bps=90e6, throughput_bps=90e6, available_bps=90e6, backlogged=True, backlog_bytes=10**6,
    utilisation=1.0, congested=False, loss=0.0, queueing_delay_s=0.0, rtt_s=0.02, min_rtt_s=0.02,
    connections=4, retransmits=0, delivery_rate_bps=90e6, cwnd_bytes=10**6, receiver_limited=0.0,
    buffer_limited=0.0,
)  # fmt: skip


def test_an_estimate_above_and_one_below_do_not_cancel_out():
    direction = Direction(link="wan", source="east")
    direction.estimate(SAMPLE, "during")
    direction.estimate(replace(SAMPLE, egress_bps=110e6), "during")
    assert direction.estimates == 2
    assert direction.estimate_errors == pytest.approx(0.2)


def test_what_says_nothing_of_the_rate_is_left_out():
    direction = Direction(link="wan", source="east")
    direction.estimate(SAMPLE, "before")
    for change in ({"backlogged": False}, {"configured_bps": None}, {"egress_bps": None}):
        direction.estimate(replace(SAMPLE, **change), "during")
    assert direction.estimates == 0


def test_the_ledger_knows_the_event():
    assert KINDS["PathSampled"] is PathSampled
