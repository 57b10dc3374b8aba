"""The workload's driver: sends requests when they are due, then waits until every one has ended."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence

from prfaas_lab.metrics.events import PhaseChanged
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.spec.scenario import ClosedLoop, Scenario
from prfaas_lab.workload.request import FollowUp, Request

Serve = Callable[[Request], Awaitable[Sequence[int] | None]]
"""Serves a request: its answer, with which its session goes on, or None when there is none."""


class Stop:
    """An event with a cheap timeout: every arrival sleeps on it."""

    def __init__(self) -> None:
        self._set = False
        self._sleepers: dict[asyncio.Future[None], None] = {}

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        """Wake whoever sleeps, now and from now on."""
        self._set = True
        for sleeper in self._sleepers:
            _wake(sleeper)

    async def before(self, over: asyncio.Future[None]) -> bool:
        """Wait until something is over, or this is set; whether it is."""
        if not self._set:
            self._sleepers[over] = None
            try:
                await over
            finally:
                del self._sleepers[over]
        return self._set

    async def wait(self) -> None:
        await self.within(math.inf)

    async def within(self, delay_s: float) -> bool:
        """Sleep so long, or until it is set; whether it is."""
        if self._set or delay_s <= 0:
            await asyncio.sleep(0)
            return self._set
        loop = asyncio.get_running_loop()
        sleeper = loop.create_future()
        self._sleepers[sleeper] = None
        timer = loop.call_later(delay_s, _wake, sleeper) if delay_s < math.inf else None
        try:
            await sleeper
        finally:
            del self._sleepers[sleeper]
            if timer is not None:
                timer.cancel()
        return self._set


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


_Flights = dict[asyncio.Task[None], None]
"""In the order in which they began, so that what becomes of them is the same in every run."""


class Arrivals:
    """Sends each request of an open loop when it is due: a timer, instead of a task that wakes for it."""

    def __init__(self, requests: Iterator[Request], send: Callable[[Request], object]) -> None:
        self._requests, self._send = requests, send
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self.over: asyncio.Future[None] = self._loop.create_future()
        """Done once all are sent; or raises what kept the rest from it."""
        self._await_next()

    def cancel(self) -> None:
        """Send no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _await_next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            _wake(self.over)
            return
        assert request.arrival_s is not None, "an open loop says when"
        delay_s = self._started + request.arrival_s - self._loop.time()
        self._timer = self._loop.call_later(max(0.0, delay_s), self._due, request)

    def _due(self, request: Request) -> None:
        try:
            self._send(request)
            self._await_next()
        except Exception as error:  # whoever waits should know; the loop does not care
            if not self.over.done():
                self.over.set_exception(error)


class Driver:
    """Drives one workload. `stop` ends the arrivals early; what was sent still drains."""

    def __init__(self, scenario: Scenario, requests: Iterator[Request], serve: Serve, ledger: Ledger) -> None:
        self.stop = Stop()
        self._scenario, self._requests, self._serve, self._ledger = scenario, requests, serve, ledger
        self._duration_s = scenario.duration * scenario.time_scale
        self._until_s = 0.0
        self._sessions: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until every request sent has ended, or `drain_timeout` has passed: the rest is cancelled."""
        flights: _Flights = {}
        self._until_s = asyncio.get_running_loop().time() + self._duration_s
        async with asyncio.TaskGroup() as group:
            self._phase("running")
            if isinstance(self._scenario.workload.arrivals, ClosedLoop):
                await self._closed_loop(self._scenario.workload.arrivals, group, flights)
            else:
                await self._open_loop(group, flights)
            self._phase("draining")
            await self._drain(flights)

    async def _open_loop(self, group: asyncio.TaskGroup, flights: _Flights) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        arrivals = Arrivals(self._requests, lambda request: self._launch(request, group, flights))
        try:
            if await self.stop.before(arrivals.over):
                return
        finally:
            arrivals.cancel()
        # The last arrival does not end the run early: the network's events go on for the duration.
        if self._scenario.workload.requests is None:
            await self._stopped_within(started + self._duration_s - loop.time())
        await self._sessions_end()

    async def _closed_loop(self, arrivals: ClosedLoop, group: asyncio.TaskGroup, flights: _Flights) -> None:
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

    async def _drain(self, flights: _Flights) -> None:
        if flights:
            _, late = await asyncio.wait(flights, timeout=self._scenario.drain_timeout)
            for flight in [flight for flight in flights if flight in late]:
                flight.cancel()

    def _launch(self, request: Request, group: asyncio.TaskGroup, flights: _Flights) -> asyncio.Task[None]:
        """A request, or a session that begins with it, as one flight."""
        flight = group.create_task(self._fly(request, flights), name=f"request {request.id}")
        flights[flight] = None
        if request.follow_ups:
            self._sessions.add(flight)
            flight.add_done_callback(self._sessions.discard)
        return flight

    async def _fly(self, request: Request, flights: _Flights) -> None:
        try:
            answer = await self._serve(request)
            if request.follow_ups:
                await self._go_on(request, answer)
        finally:
            if (flight := asyncio.current_task()) is not None:
                flights.pop(flight, None)

    async def _go_on(self, request: Request, answer: Sequence[int] | None) -> None:
        """Serve what follows a request. A session whose answer failed is over."""
        if answer is None or not request.follow_ups:
            return
        async with asyncio.TaskGroup() as group:
            branches = [
                group.create_task(self._follow(follow_up, request, answer), name=follow_up.id)
                for follow_up in request.follow_ups
            ]
            try:
                await asyncio.wait(branches)
            except asyncio.CancelledError:
                for branch in branches:  # the group would give them up in the order of a set
                    branch.cancel()
                raise

    async def _follow(self, follow_up: FollowUp, request: Request, answer: Sequence[int]) -> None:
        """The next turn, unless requests are no longer to be sent by then."""
        left_s = self._until_s - asyncio.get_running_loop().time()
        if await self._stopped_within(min(follow_up.think_s, left_s)) or left_s <= follow_up.think_s:
            return
        following = follow_up.after(request, answer)
        await self._go_on(following, await self._serve(following))

    async def _sessions_end(self) -> None:
        """Later turns are requests to be sent too: wait for them until the duration is over."""
        async with asyncio.TaskGroup() as group:
            stopped = group.create_task(self.stop.wait())
            while self._sessions and not stopped.done():
                left_s = self._until_s - asyncio.get_running_loop().time()
                if left_s <= 0:
                    break
                some = {stopped, *self._sessions}
                await asyncio.wait(some, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()

    async def _stopped_within(self, delay_s: float) -> bool:
        return await self.stop.within(delay_s)

    def _phase(self, name: str) -> None:
        self._ledger.record(PhaseChanged(at_s=self._ledger.now(), name=name))
