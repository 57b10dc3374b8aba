"""A topology brought up only to be measured."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from prfaas_lab.fabric.measure import LinkMeasurement, judge, measure
from prfaas_lab.fabric.network import up
from prfaas_lab.fabric.ownership import Ownership
from prfaas_lab.spec.scenario import Tolerance
from prfaas_lab.spec.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTest:
    """Configured against measured, for every direction of every link."""

    shaper: str
    reason: str
    scale: float
    measurements: tuple[LinkMeasurement, ...]
    problems: tuple[str, ...]
    """What lies outside the tolerance, in words; empty when all is as the file says."""


def link_test(
    topology: Topology, *, shaper: str = "auto", scale: float = 1.0, tolerance: Tolerance | None = None
) -> LinkTest:
    """Bring a topology up, measure it, take it down. Blocks for some seconds; raises FabricError."""
    tolerance = tolerance or Tolerance()
    ownership = Ownership(f"link-test-{secrets.token_hex(3)}")
    try:
        with up(topology, run_id=ownership.run_id, ownership=ownership, shaper=shaper, scale=scale) as fabric:
            found = asyncio.run(measure(fabric, tolerance=tolerance))
            problems = [reason for measurement in found for reason in judge(measurement, tolerance)]
            return LinkTest(
                shaper=fabric.shaper,
                reason=fabric.reason,
                scale=scale,
                measurements=tuple(found),
                problems=tuple(problems),
            )
    finally:
        ownership.release()
