"""Links as fluid: transfers share capacity max-min fairly, on the running loop's clock.

A transfer is a `Flow`: bytes that its sender makes over a known time (prefill, layer by layer), over a
route of resources (link directions, egress caps, engines' own links), each of which has a capacity
that may change at any moment. Events are starts, ends and changes of pace, never packets.

While nobody on a route wants more than there is, a flow that starts or ends changes nothing for the
others, and costs no more than itself. Where somebody does, shares are found anew among the lanes that
share a resource with it (`fluid_shares`), and nowhere else.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence

from prfaas_lab.fabric.fluid_lane import HAIR_S, Flow, Lane, Piece, Resource
from prfaas_lab.fabric.fluid_shares import joined, settle

__all__ = ["Flow", "Fluid", "Piece"]


_STALE = 16
"""What is due is sorted out once it is so many times what there are lanes: most of it is void by then."""


class Fluid:
    """A set of resources and the flows over them. Made on a running loop; one timer in all."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._resources: dict[Hashable, Resource] = {}
        self._lanes: dict[tuple[Hashable, ...], Lane] = {}
        self._pieces: list[tuple[float, int, Flow]] = []
        """When flows begin their next piece."""
        self._dues: list[tuple[float, int, int, Lane]] = []
        """When lanes have a greedy flow that ends or catches up, and the version it was reckoned for."""
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    # -- what there is ---------------------------------------------------------------------------

    def resource(self, key: Hashable, capacity: float) -> None:
        """Add a resource, or change its capacity (bytes/s) from now on."""
        known = self._resources.get(key)
        if known is None:
            self._resources[key] = Resource(key, capacity)
        elif known.capacity != capacity:
            known.capacity = capacity
            for lane in known.active:
                lane.measure()
            self._settle(known.active)

    def carried_bytes(self, key: Hashable) -> float:
        """Bytes that have passed a resource: exact for flows that are over."""
        now, resource = self._loop.time(), self._resources[key]
        for lane in resource.active:
            lane.advance(now)
        return resource.finished_bytes + sum([max(0.0, lane.moved) for lane in resource.active])

    def waits(self, key: Hashable, *, but: Hashable = None) -> bool:
        """Whether a flow over a resource has made more than it may send (and would be sending more, but for
        those it shares with). Flows over resource `but` do not count."""
        left_out = self._resources[but].active if but in self._resources else {}
        lanes = self._resources[key].active
        return any(lane.greedy and lane.share < lane.most for lane in lanes if lane not in left_out)

    def share(self, route: Sequence[Hashable]) -> float:
        """What one more greedy flow on a route would get at most, bytes/s."""
        return min((self._resources[key].capacity for key in route), default=math.inf)

    # -- flows -----------------------------------------------------------------------------------

    def send(
        self, route: tuple[Hashable, ...], pieces: Iterable[Piece], on_sent: Callable[[], None],
        *, most: float = math.inf,
    ) -> Flow:  # fmt: skip
        """Send pieces that are made one after the other, from now on; `on_sent` when the last byte
        has passed. `most`: what one flow on this route can have at best, bytes/s, from now on."""
        lane = self._lane(route)
        lane.advance(self._loop.time())
        lane.most = most
        flow = Flow(lane, list(pieces), on_sent, next(self._numbers))
        lane.join(flow)
        self._await_piece(flow)
        self._settle([lane])
        return flow

    def cancel(self, flow: Flow) -> None:
        """Give a flow up; what it has sent stays counted."""
        if flow.over:
            return
        lane = flow.lane
        lane.advance(self._loop.time())
        lane.leave(flow, min(flow.size, max(0, math.floor(lane.sent_of(flow)))))
        self._settle([lane])

    def _lane(self, route: tuple[Hashable, ...]) -> Lane:
        lane = self._lanes.get(route)
        if lane is None:
            resources = tuple(self._resources[key] for key in route)
            lane = self._lanes[route] = Lane(len(self._lanes), resources, self._loop.time())
        return lane

    # -- one instant -----------------------------------------------------------------------------

    def _happen(self) -> None:
        """The timer's: all that is due now."""
        self._timer = None
        now, sent = self._loop.time(), list[Flow]()
        touched = self._begin_pieces(now, sent)
        while self._dues and self._dues[0][0] <= now + HAIR_S:
            _, _, version, lane = heapq.heappop(self._dues)
            if version == lane.version:
                touched[lane] = None
        self._settle(touched, sent)
        for flow in sent:
            flow.on_sent()

    def _begin_pieces(self, now: float, sent: list[Flow]) -> dict[Lane, None]:
        """Flows that go on to their next piece, or are over; the lanes they are on."""
        touched: dict[Lane, None] = {}
        while self._pieces and self._pieces[0][0] <= now + HAIR_S:
            ends, _, flow = heapq.heappop(self._pieces)
            if flow.over or flow.piece_ends != ends:
                continue
            flow.lane.advance(now)
            if flow.lane.next_piece(flow):
                sent.append(flow)
            self._await_piece(flow)
            touched[flow.lane] = None
        return touched

    def _await_piece(self, flow: Flow) -> None:
        if flow.piece_ends < math.inf:
            heapq.heappush(self._pieces, (flow.piece_ends, flow.number, flow))

    def _settle(self, touched: Iterable[Lane], sent: list[Flow] | None = None) -> None:
        """Find the shares around the lanes on which something changed, and wait for what is next. With
        `sent`, end what is sent by now."""
        settled: set[Lane] = set()
        for lane in touched:
            if lane not in settled and not lane.quiet:
                settled.update(self._settle_around(lane, sent))
        self._wait()

    def _settle_around(self, lane: Lane, sent: list[Flow] | None) -> list[Lane]:
        now, lanes = self._loop.time(), joined(lane)
        for one in lanes:
            one.advance(now)
            if sent is not None and one.due_at <= now + HAIR_S:
                one.catch_up()
                one.finish(sent)
        settle(lanes)
        for one in lanes:
            one.version += 1
            one.due_at = one.due() if one.greedy else math.inf
            if one.due_at < math.inf:
                heapq.heappush(self._dues, (one.due_at, next(self._numbers), one.version, one))
        return lanes

    def _wait(self) -> None:
        due = self._next_due()
        if self._timer is not None:
            if self._timer.when() == due:
                return
            self._timer.cancel()
            self._timer = None
        if due < math.inf:
            self._timer = self._loop.call_at(max(due, self._loop.time()), self._happen)

    def _next_due(self) -> float:
        pieces, dues = self._pieces, self._dues
        while pieces and (pieces[0][2].over or pieces[0][2].piece_ends != pieces[0][0]):
            heapq.heappop(pieces)
        while dues and dues[0][2] != dues[0][3].version:
            heapq.heappop(dues)
        if len(dues) > _STALE * len(self._lanes):
            self._dues = dues = [due for due in dues if due[2] == due[3].version]
            heapq.heapify(dues)
        return min(pieces[0][0] if pieces else math.inf, dues[0][0] if dues else math.inf)
