"""Claims about what befalls a run's network, on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from prfaas_lab.fabric.shape import Shape
from prfaas_lab.fabric.timeline import Change, Timeline
from prfaas_lab.lab.conditions import Conditions
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.metrics.events import LinkSampled
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.spec.scenario import Event

DIRECTIONS = [(link, end) for link in ("near", "far") for end in ("east", "west")]
IDLE, BUSY = 100, 1 << 20


def changes_when(moving: Iterable[tuple[str, str]]) -> list[Change]:
    """What changes while these directions carry a transfer, and the event waits for one on `near`."""

    async def play() -> list[Change]:
        loop, made = asyncio.get_running_loop(), []

        async def apply(change: Change) -> float:
            made.append(change)
            return loop.time()

        event = Event.model_validate({"link": "near", "during_transfer": True, "set": {"delay": "30ms"}})
        base = {direction: Shape(rate_bps=100e6, delay_s=0.01) for direction in DIRECTIONS}
        ledger = Ledger(loop.time, loop.time())
        conditions = Conditions(
            Timeline(base, [], [event]), ledger, apply=apply, check=lambda link, source, shape: None
        )
        playing = asyncio.ensure_future(conditions.run())
        for tick in range(3):
            await asyncio.sleep(0.1)
            for direction in DIRECTIONS:  # all of them at once, as they are read
                ledger.record(_sample(direction, tick * (BUSY if direction in moving else IDLE), loop.time()))
        await asyncio.sleep(0.1)
        playing.cancel()
        return made

    return run_virtual(play())


def _sample(direction: tuple[str, str], carried: int, at_s: float) -> LinkSampled:
    return LinkSampled(
        at_s=at_s, link=direction[0], source=direction[1], configured_bps=100e6, bytes_total=carried,
        packets_total=0, dropped_total=0, backlog_bytes=0,
    )  # fmt: skip


@pytest.mark.parametrize("source", ["east", "west"])
def test_a_transfer_is_seen_in_either_direction_whatever_else_is_idle(source: str) -> None:
    assert {(change.link, change.source) for change in changes_when([("near", source)])} == set(
        DIRECTIONS[:2]
    )


def test_acknowledgements_and_other_links_are_no_transfer() -> None:
    assert changes_when([]) == changes_when([("far", "east"), ("far", "west")]) == []
