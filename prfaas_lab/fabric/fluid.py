"""Links as fluid: transfers share capacity max-min fairly, on the running loop's clock.

A transfer is a `Flow`: bytes that its sender makes over a known time (prefill, layer by layer), over a
route of resources (link directions, egress caps, engines' own links), each of which has a capacity
that may change at any moment. Events are starts, ends and changes of pace, never packets.

Flows on one route are alike, so they are kept together (a `Lane`). A flow that gets all it can make is
`paced` by its sender; one that does not is `greedy` and takes the lane's fair share, the same for each.
So one instant's rates are found over lanes, not over flows (progressive filling), and a greedy flow's
progress is one number of its lane: the bytes that each of its greedy flows has got so far.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

Piece = tuple[float, int]
"""(seconds, bytes): made evenly over that time."""

_HAIR_S = 1e-9
_HAIR = 1e-9


@dataclass(slots=True, eq=False)
class Flow:
    """One transfer. `made` bytes exist, `sent` of them have left, at the lane's last stirring."""

    lane: Lane
    pieces: list[Piece]
    size: int
    on_sent: Callable[[], None]
    number: int
    pace: float = 0.0
    piece_bytes: int = 0
    """Bytes of the piece that is being made."""
    piece_ends: float = math.inf
    made_before: int = 0
    """Bytes of the pieces that are over."""
    greedy: bool = False
    mark: float = 0.0
    """When greedy: the lane's level when it had sent nothing."""
    over: bool = False

    def made(self, now: float) -> float:
        """Bytes that the sender has made."""
        if not self.pace:
            return self.made_before
        return self.made_before + self.piece_bytes - max(0.0, self.piece_ends - now) * self.pace


@dataclass(slots=True, eq=False)
class Resource:
    """Something that flows share: bytes per second, and who is on it."""

    key: Hashable
    capacity: float
    lanes: list[Lane] = field(default_factory=list)
    level: float = math.inf
    """What a greedy flow gets here."""

    @property
    def idle(self) -> bool:
        return not any(lane.flows for lane in self.lanes)


class Lane:
    """All flows on one route."""

    def __init__(self, resources: tuple[Resource, ...], most: float) -> None:
        self.resources, self.most = resources, most
        """`most`: bytes/s that one flow can have at best (its windows, loss on its path)."""
        self.flows = 0
        self.paced_sum = 0.0
        self.paced: dict[int, Flow] = {}
        self.fastest: list[tuple[float, int, Flow]] = []
        self.greedy = 0
        self.late: dict[int, Flow] = {}
        """Greedy flows whose bytes are still being made."""
        self.ends: list[tuple[float, int, Flow]] = []
        """Greedy flows that are made, by the level at which they are sent."""
        self.level = 0.0
        self.share = math.inf
        self.finished_bytes = 0
        self.moved = 0.0
        """Bytes of flows under way, and not yet of finished ones."""

    def fastest_paced(self) -> Flow | None:
        while self.fastest:
            pace, number, flow = self.fastest[0]
            if self.paced.get(number) is flow and -pace == flow.pace:
                return flow
            heapq.heappop(self.fastest)
        return None


class Fluid:
    """A set of resources and the flows over them. Made on a running loop; one timer in all."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._resources: dict[Hashable, Resource] = {}
        self._lanes: dict[tuple[Hashable, ...], Lane] = {}
        self._pieces: list[tuple[float, int, Flow]] = []
        self._numbers = itertools.count()
        self._at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    # -- what there is ---------------------------------------------------------------------------

    def resource(self, key: Hashable, capacity: float) -> None:
        """Add a resource, or change its capacity (bytes/s) from now on."""
        known = self._resources.get(key)
        if known is None:
            self._resources[key] = Resource(key, capacity)
        elif known.capacity != capacity:
            self._advance()
            known.capacity = capacity
            self._settle()

    def limit(self, route: Sequence[Hashable], most: float) -> None:
        """What one flow on a route can have at best, bytes/s, from now on."""
        lane = self._lane(tuple(route), most)
        if lane.most != most:
            self._advance()
            lane.most = most
            self._settle()

    def carried_bytes(self, key: Hashable) -> float:
        """Bytes that have passed a resource: exact for flows that are over."""
        self._advance()
        lanes = self._resources[key].lanes
        return sum(lane.finished_bytes for lane in lanes) + sum(max(0.0, lane.moved) for lane in lanes)

    def load(self, key: Hashable) -> tuple[float, bool]:
        """Bytes/s that pass a resource now, and whether a flow over it has made more than it may send
        (and would be sending more, but for those it shares with)."""
        lanes = [lane for lane in self._resources[key].lanes if lane.flows]
        rate = sum(lane.paced_sum + (lane.greedy * lane.share if lane.greedy else 0.0) for lane in lanes)
        return rate, any(lane.greedy and lane.share < lane.most for lane in lanes)

    def flowing(self, key: Hashable) -> bool:
        """Whether a flow is under way over a resource."""
        return not self._resources[key].idle

    def share(self, route: Sequence[Hashable]) -> float:
        """What one more greedy flow on a route would get at most, bytes/s."""
        return min((self._resources[key].capacity for key in route), default=math.inf)

    # -- flows -----------------------------------------------------------------------------------

    def send(
        self, route: Sequence[Hashable], pieces: Iterable[Piece], on_sent: Callable[[], None],
        *, most: float = math.inf,
    ) -> Flow:  # fmt: skip
        """Send pieces that are made one after the other, from now on; `on_sent` when the last byte
        has passed. `most`: what one flow on this route can have at best, bytes/s."""
        self._advance()
        lane = self._lane(tuple(route), most)
        kept = list(pieces)
        flow = Flow(lane, kept, sum(size for _, size in kept), on_sent, next(self._numbers))
        lane.flows += 1
        self._next_piece(flow)
        self._settle()
        return flow

    def cancel(self, flow: Flow) -> None:
        """Give a flow up; what it has sent stays counted."""
        if flow.over:
            return
        self._advance()
        lane = flow.lane
        sent = lane.level - flow.mark if flow.greedy else flow.made(self._at)
        gone = min(flow.size, max(0, math.floor(sent)))
        self._leave(flow, gone)
        self._settle()

    # -- one instant -----------------------------------------------------------------------------

    def _lane(self, route: tuple[Hashable, ...], most: float) -> Lane:
        lane = self._lanes.get(route)
        if lane is None:
            resources = tuple(self._resources[key] for key in route)
            lane = self._lanes[route] = Lane(resources, most)
            for resource in resources:
                resource.lanes.append(lane)
        return lane

    def _next_piece(self, flow: Flow) -> None:
        """Begin what is made next; a flow with nothing left to make runs out of its backlog."""
        lane, was_paced = flow.lane, flow.number in flow.lane.paced
        if was_paced:
            del lane.paced[flow.number]
            lane.paced_sum -= flow.pace
        flow.made_before += flow.piece_bytes
        sent = flow.made_before if was_paced else 0
        seconds, size = _next(flow.pieces)
        while size and not seconds:  # made at once
            flow.made_before += size
            seconds, size = _next(flow.pieces)
        flow.piece_bytes, flow.piece_ends, flow.pace = size, math.inf, 0.0
        if seconds:
            flow.piece_ends, flow.pace = self._at + seconds, size / seconds
            heapq.heappush(self._pieces, (flow.piece_ends, flow.number, flow))
        if flow.greedy:
            if not seconds:
                del lane.late[flow.number]
                heapq.heappush(lane.ends, (flow.mark + flow.size, flow.number, flow))
        elif seconds and sent == flow.made_before:
            self._pace(flow)
        else:
            self._unpace(flow, sent)

    def _pace(self, flow: Flow) -> None:
        """From now on a flow sends as it is made."""
        lane = flow.lane
        lane.paced[flow.number] = flow
        lane.paced_sum += flow.pace
        heapq.heappush(lane.fastest, (-flow.pace, flow.number, flow))

    def _unpace(self, flow: Flow, sent: float) -> None:
        """From now on a flow takes its lane's share."""
        lane = flow.lane
        flow.greedy, flow.mark = True, lane.level - sent
        lane.greedy += 1
        if flow.piece_ends < math.inf:
            lane.late[flow.number] = flow
        else:
            heapq.heappush(lane.ends, (flow.mark + flow.size, flow.number, flow))

    def _advance(self) -> None:
        """Bring all that flows up to now."""
        now = self._loop.time()
        gap = now - self._at
        self._at = now
        if gap <= 0.0:
            return
        for lane in self._lanes.values():
            if lane.flows:
                got = lane.share * gap if lane.greedy else 0.0
                lane.level += got
                lane.moved += lane.paced_sum * gap + lane.greedy * got

    def _happen(self) -> None:
        """The timer's: all that is due now."""
        self._timer = None
        self._advance()
        now = self._at
        while self._pieces and self._pieces[0][0] <= now + _HAIR_S:
            ends, _, flow = heapq.heappop(self._pieces)
            if not flow.over and flow.piece_ends == ends:
                self._next_piece(flow)
        sent: list[Flow] = []
        for lane in self._lanes.values():
            if lane.greedy:
                self._catch_up(lane)
                self._finish(lane, sent)
        self._settle()
        for flow in sent:
            flow.on_sent()

    def _catch_up(self, lane: Lane) -> None:
        """Greedy flows that have sent all that is made so far are paced by their senders again."""
        for flow in [f for f in lane.late.values() if self._backlog(f) <= self._hair(lane)]:
            if flow.pace <= lane.share:
                del lane.late[flow.number]
                lane.greedy -= 1
                flow.greedy = False
                self._pace(flow)

    def _backlog(self, flow: Flow) -> float:
        return flow.made(self._at) - (flow.lane.level - flow.mark)

    def _hair(self, lane: Lane) -> float:
        """Bytes too few to count, as floats go: what the share carries in a hair's time."""
        return max(1e-6, _HAIR * lane.level, _HAIR_S * lane.share if lane.share < math.inf else 0.0)

    def _finish(self, lane: Lane, sent: list[Flow]) -> None:
        while lane.ends and lane.ends[0][0] <= lane.level + self._hair(lane):
            _, _, flow = heapq.heappop(lane.ends)
            if not flow.over:
                self._leave(flow, flow.size)
                sent.append(flow)

    def _leave(self, flow: Flow, gone: int) -> None:
        lane = flow.lane
        flow.over = True
        lane.flows -= 1
        if flow.greedy:
            lane.greedy -= 1
            lane.late.pop(flow.number, None)
        elif lane.paced.pop(flow.number, None) is not None:
            lane.paced_sum -= flow.pace
        lane.finished_bytes += gone
        lane.moved -= gone
        if not lane.flows:  # nothing is under way: what rounding left is nothing
            lane.moved = lane.level = lane.paced_sum = 0.0
            lane.ends.clear()
            lane.fastest.clear()

    # -- rates -----------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Find every lane's share, make greedy what cannot keep its pace, and wait for what is next."""
        while True:
            self._fill()
            flow = self._overrun()
            if flow is None:
                break
            del flow.lane.paced[flow.number]
            flow.lane.paced_sum -= flow.pace
            self._unpace(flow, flow.made(self._at))
        self._wait()

    def _fill(self) -> None:
        """Progressive filling: the tightest resource fixes the share of the lanes on it, and so on."""
        lanes = [lane for lane in self._lanes.values() if lane.flows]
        used: dict[Resource, list[float]] = {}
        for lane in lanes:
            for resource in lane.resources:
                left_and_greedy = used.get(resource)
                if left_and_greedy is None:
                    resource.level = math.inf
                    left_and_greedy = used[resource] = [resource.capacity, 0.0]
                left_and_greedy[0] -= lane.paced_sum
                left_and_greedy[1] += lane.greedy
        open_lanes = [lane for lane in lanes if lane.greedy]
        while open_lanes:
            share, tightest = math.inf, None
            for resource, (left, greedy) in used.items():
                if greedy > 0 and max(0.0, left) / greedy < share:
                    share, tightest = max(0.0, left) / greedy, resource
            slowest = min(open_lanes, key=lambda lane: lane.most)
            if slowest.most <= share:
                share, fixed = slowest.most, [slowest]
            elif tightest is None:
                share, fixed = math.inf, open_lanes
            else:
                tightest.level = share
                fixed = [lane for lane in open_lanes if tightest in lane.resources]
            for lane in fixed:
                lane.share = share
                for resource in lane.resources:
                    used[resource][0] -= share * lane.greedy if share < math.inf else 0.0
                    used[resource][1] -= lane.greedy
            open_lanes = [lane for lane in open_lanes if lane not in fixed]
        for resource, (left, _) in used.items():
            if left < -_HAIR * resource.capacity:
                resource.level = 0.0
        for lane in lanes:
            if not lane.greedy:
                lane.share = min(lane.most, min((r.level for r in lane.resources), default=math.inf))

    def _overrun(self) -> Flow | None:
        """A paced flow that is faster than a greedy one would be: the fastest of all there are."""
        worst: Flow | None = None
        for lane in self._lanes.values():
            if lane.paced:
                flow = lane.fastest_paced()
                ceiling = min(lane.most, min((r.level for r in lane.resources), default=math.inf))
                if (
                    flow is not None
                    and flow.pace > ceiling * (1 + _HAIR)
                    and (worst is None or flow.pace > worst.pace)
                ):
                    worst = flow
        return worst

    def _wait(self) -> None:
        due = min((self._lane_due(lane) for lane in self._lanes.values() if lane.greedy), default=math.inf)
        while self._pieces and _stale(*self._pieces[0]):
            heapq.heappop(self._pieces)
        if self._pieces:
            due = min(due, self._pieces[0][0])
        if self._timer is not None:
            if self._timer.when() == due:
                return
            self._timer.cancel()
            self._timer = None
        if due < math.inf:
            self._timer = self._loop.call_at(max(due, self._at), self._happen)

    def _lane_due(self, lane: Lane) -> float:
        """When its next flow is sent, or has caught up with its sender."""
        due = math.inf
        while lane.ends and lane.ends[0][2].over:
            heapq.heappop(lane.ends)
        if lane.share <= 0.0:
            return due
        if lane.ends:
            due = self._at + max(0.0, lane.ends[0][0] - lane.level) / lane.share
        for flow in lane.late.values():
            if flow.pace < lane.share:
                due = min(due, self._at + max(0.0, self._backlog(flow)) / (lane.share - flow.pace))
        return due


def _next(pieces: list[Piece]) -> Piece:
    return pieces.pop(0) if pieces else (0.0, 0)


def _stale(ends: float, number: int, flow: Flow) -> bool:
    return flow.over or flow.piece_ends != ends
