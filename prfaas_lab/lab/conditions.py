"""What the network goes through while a workload runs: fluctuations and events, made real."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.shape import Shape
from prfaas_lab.fabric.timeline import Change, Observed, ShapeChange, Timeline
from prfaas_lab.fabric.timeline_player import TimelinePlayer
from prfaas_lab.lab.watch import Links
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.spec.scenario import Event, Resolved

if TYPE_CHECKING:  # a simulation starts without what only a network of this machine needs
    from prfaas_lab.fabric.network import Fabric
    from prfaas_lab.fabric.ownership import Ownership

_BEFALL_TIMEOUT_S = 10.0
_IN_FLIGHT_BYTES = 16 * 1024
"""More than acknowledgements and keep-alives within one sample: KVCache is on its way."""


def timeline_of(resolved: Resolved, links: Links) -> Timeline:
    """All that befalls a scenario's network. Raises FabricError for a bad trace."""
    scenario = resolved.scenario
    return Timeline(
        {direction: links.shape(*direction) for direction in links.directions},
        scenario.fluctuations,
        scenario.events,
        seed=scenario.seed,
        scale=scenario.scale,
        time_scale=scenario.time_scale,
    )


class Conditions:
    """The changes still to come, and the cross traffic that runs. `open` before anything is served."""

    def __init__(
        self, timeline: Timeline, ledger: Ledger,
        *, apply: Callable[[Change], Awaitable[float]], check: Callable[[str, str, Shape], None],
    ) -> None:  # fmt: skip
        """`apply` makes a change and returns the loop time at which it had taken effect; `check` refuses
        (FabricError) a shape that this network cannot take."""
        self._timeline, self._ledger, self._check = timeline, ledger, check
        self._player = TimelinePlayer(timeline, apply=apply, report=self._report)
        self._started_s = 0.0
        self._seen = Observed()
        self._carried: dict[tuple[str, str], int] = {}
        self._busy: set[tuple[str, str]] = set()

    @classmethod
    @contextmanager
    def opened(
        cls, resolved: Resolved, fabric: Fabric, ownership: Ownership, ledger: Ledger
    ) -> Iterator[Conditions]:
        """Read and check all that is to come. Raises FabricError for what this shaper cannot do."""
        from prfaas_lab.fabric.cross_traffic import CrossTraffic

        timeline = timeline_of(resolved, fabric)
        for direction, shape in timeline.possible_shapes():
            fabric.check(*direction, shape)
        traffic = None
        if any(event.cross_traffic is not None for event in resolved.scenario.events):
            traffic = CrossTraffic(fabric)
            ownership.claim_process(traffic.pid)

        async def apply(change: Change) -> float:
            if isinstance(change, ShapeChange):
                return await asyncio.to_thread(fabric.change, change.link, change.source, change.shape)
            assert traffic is not None, "opened with the events that need it"
            act = traffic.start if change.starts else traffic.stop
            return await asyncio.to_thread(act, change.link, change.source, change.traffic)

        try:
            yield cls(timeline, ledger, apply=apply, check=fabric.check)
        finally:
            if traffic is not None:
                traffic.close()

    async def befall(self, event: Event) -> None:
        """Have an event happen now, whatever its trigger, while `run` runs; returns when it has taken
        effect. Raises FabricError for what cannot be."""
        if event.cross_traffic is not None:
            raise FabricError(
                "cross traffic cannot be added to a running network", remedy="name it in events:"
            )
        for direction, shape in self._timeline.shapes_of(event):
            self._check(*direction, shape)
        async with asyncio.timeout(_BEFALL_TIMEOUT_S):
            await self._player.befall(event)

    async def run(self, *, endless: bool = False) -> None:
        """From the workload's start, until nothing is left to come, and `endless` for what may still
        `befall`; cancel it when the run ends."""
        unsubscribe = self._ledger.subscribe(self._observe)
        try:
            self._started_s = self._ledger.now()
            await self._player.play(asyncio.get_running_loop().time(), endless=endless)
        finally:
            unsubscribe()

    def _report(self, change: Change, at_s: float) -> None:
        self._ledger.record(
            ev.LinkChanged(
                at_s=self._started_s + at_s,
                link=change.link,
                source=change.source,
                due_s=self._started_s + change.due_s,
                change=change.what,
            )
        )

    def _observe(self, event: ev.Event) -> None:
        seen = self._seen
        if isinstance(event, ev.RequestSubmitted):
            seen = Observed(requests=seen.requests + 1, transferring=seen.transferring)
        elif isinstance(event, ev.LinkSampled):
            key = event.link, event.source
            moved = event.bytes_total - self._carried.get(key, event.bytes_total)
            self._carried[key] = event.bytes_total
            (self._busy.add if moved > _IN_FLIGHT_BYTES else self._busy.discard)(key)
            links = frozenset(link for link, _ in self._busy)
            seen = Observed(requests=seen.requests, transferring=links)
        if seen != self._seen:
            self._seen = seen
            self._player.observe(seen)
