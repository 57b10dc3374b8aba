"""The workload's driver: sends requests when they are due, then waits until every one has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

from prfaas_lab.metrics.events import PhaseChanged
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.spec.scenario import ClosedLoop, Scenario
from prfaas_lab.workload.request import Request

Serve = Callable[[Request], Awaitable[None]]


class Driver:
    """Drives one workload. `stop` ends the arrivals early; what was sent still drains."""

    def __init__(self, scenario: Scenario, requests: Iterator[Request], serve: Serve, ledger: Ledger) -> None:
        self.stop = asyncio.Event()
        self._scenario, self._requests, self._serve, self._ledger = scenario, requests, serve, ledger
        self._duration_s = scenario.duration * scenario.time_scale

    async def run(self) -> None:
        """Until every request sent has ended, or `drain_timeout` has passed: the rest is cancelled."""
        flights: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            self._phase("running")
            if isinstance(self._scenario.workload.arrivals, ClosedLoop):
                await self._closed_loop(self._scenario.workload.arrivals, group, flights)
            else:
                await self._open_loop(group, flights)
            self._phase("draining")
            await self._drain(flights)

    async def _open_loop(self, group: asyncio.TaskGroup, flights: set[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        for request in self._requests:
            assert request.arrival_s is not None, "an open loop says when"
            if await self._stopped_within(started + request.arrival_s - loop.time()):
                return
            self._launch(request, group, flights)
        # The last arrival does not end the run early: the network's events go on for the duration.
        if self._scenario.workload.requests is None:
            await self._stopped_within(started + self._duration_s - loop.time())

    async def _closed_loop(
        self, arrivals: ClosedLoop, group: asyncio.TaskGroup, flights: set[asyncio.Task[None]]
    ) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._duration_s
        think_s = arrivals.think * self._scenario.time_scale

        async def client() -> None:
            while loop.time() < until and not self.stop.is_set():
                request = next(self._requests, None)
                if request is None:
                    return
                flight = self._launch(request, group, flights)
                await asyncio.wait([flight])
                if await self._stopped_within(min(think_s, until - loop.time())):
                    return

        clients = [group.create_task(client(), name=f"client {n}") for n in range(arrivals.clients)]
        await asyncio.wait(clients, timeout=self._duration_s)
        self.stop.set()

    async def _drain(self, flights: set[asyncio.Task[None]]) -> None:
        if flights:
            _, late = await asyncio.wait(flights, timeout=self._scenario.drain_timeout)
            for flight in late:
                flight.cancel()

    def _launch(
        self, request: Request, group: asyncio.TaskGroup, flights: set[asyncio.Task[None]]
    ) -> asyncio.Task[None]:
        async def fly() -> None:
            await self._serve(request)

        flight = group.create_task(fly(), name=f"request {request.id}")
        flights.add(flight)
        flight.add_done_callback(flights.discard)
        return flight

    async def _stopped_within(self, delay_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, delay_s)):
                await self.stop.wait()
        return self.stop.is_set()

    def _phase(self, name: str) -> None:
        self._ledger.record(PhaseChanged(at_s=self._ledger.now(), name=name))
