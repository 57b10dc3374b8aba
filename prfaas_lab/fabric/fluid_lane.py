"""The flows of one route, and the resources they cross: what has been made, sent, and is due.

Flows on one route are alike, so they are kept together (a `Lane`). A flow that gets all it can make is
`paced` by its sender; one that does not is `greedy` and takes the lane's fair share, the same for each.
So rates are found over lanes, not over flows, and a greedy flow's progress is one number of its lane:
the `level`, the bytes that each of its greedy flows has got so far.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable

Piece = tuple[float, int]
"""(seconds, bytes): made evenly over that time."""

HAIR = 1e-9
"""Shares this close are equal, as floats go."""
HAIR_S = 1e-9
_STALE = 4
"""Paces are sorted out once they are so many times the flows: on a lane that is never full nobody else asks
which is the fastest, and what is over must not stay."""


class Resource:
    """Something that flows share: bytes per second, and who is on it."""

    __slots__ = ("active", "capacity", "finished_bytes", "greedy", "key", "level", "paced")

    def __init__(self, key: Hashable, capacity: float) -> None:
        self.key, self.capacity = key, capacity
        self.active: dict[Lane, None] = {}
        """Lanes with a flow under way."""
        self.paced, self.greedy = 0.0, 0
        """Bytes/s that paced flows take of it, and the number of greedy ones."""
        self.level = math.inf
        """What a greedy flow gets here."""
        self.finished_bytes = 0

    @property
    def slack(self) -> bool:
        """Whether those on it could not fill it, whatever they got elsewhere: it holds nobody back."""
        wanted = self.paced
        for lane in self.active:
            if lane.greedy:
                wanted += lane.greedy * min(lane.most, lane.narrowest)
                if wanted > self.capacity:
                    return False
        return wanted <= self.capacity


class Flow:
    """One transfer. `made_before` counts the pieces that are over; one may be in the making."""

    __slots__ = (
        "__weakref__", "greedy", "lane", "made_before", "mark", "number", "on_sent", "over", "pace", "paced",
        "piece_bytes", "piece_ends", "pieces", "size",
    )  # fmt: skip

    def __init__(self, lane: Lane, pieces: list[Piece], on_sent: Callable[[], None], number: int) -> None:
        self.lane, self.pieces, self.on_sent, self.number = lane, pieces, on_sent, number
        self.size = sum([size for _, size in pieces])
        self.made_before = self.piece_bytes = 0
        self.pace, self.piece_ends = 0.0, math.inf
        self.paced = self.greedy = self.over = False
        self.mark = 0.0
        """When greedy: the lane's level when it had sent nothing."""

    def made(self, now: float) -> float:
        """Bytes that the sender has made."""
        if not self.pace:
            return self.made_before
        left_s = self.piece_ends - now
        made = self.made_before + self.piece_bytes
        return made - left_s * self.pace if left_s > 0.0 else made

    def next_piece(self, now: float) -> None:
        """Begin what is made next; what is made at once is there already."""
        self.made_before += self.piece_bytes
        seconds, size = self._next()
        while size and not seconds:
            self.made_before += size
            seconds, size = self._next()
        self.piece_bytes, self.piece_ends, self.pace = size, math.inf, 0.0
        if seconds:
            self.piece_ends, self.pace = now + seconds, size / seconds

    def _next(self) -> Piece:
        return self.pieces.pop(0) if self.pieces else (0.0, 0)


class Lane:
    """All flows on one route, as they were `at` its last change or look."""

    def __init__(self, number: int, resources: tuple[Resource, ...], at: float) -> None:
        self.number, self.resources, self.at = number, resources, at
        self.most = math.inf
        """Bytes/s that one flow can have at best (its windows, loss on its path)."""
        self.narrowest = math.inf
        self.flows = 0
        self.paced_sum = 0.0
        self.greedy = 0
        self.late: dict[int, Flow] = {}
        """Greedy flows whose bytes are still being made."""
        self.level, self.share = 0.0, math.inf
        self.moved = 0.0
        """Bytes of flows under way, and not yet of finished ones."""
        self.version, self.due_at = 0, math.inf
        """Of its share, and when a greedy flow of it ends or catches up: under an older one that is void."""
        self._ends: list[tuple[float, int, Flow]] = []
        """Greedy flows that are made, by the level at which they are sent."""
        self._fastest: list[tuple[float, int, Flow]] = []

    # -- flows -----------------------------------------------------------------------------------

    def join(self, flow: Flow) -> None:
        """Begin a flow."""
        self.flows += 1
        if self.flows == 1:
            self.measure()
            for resource in self.resources:
                resource.active[self] = None
        self.next_piece(flow)

    def next_piece(self, flow: Flow) -> bool:
        """Begin what a flow makes next; whether that is nothing, and all was sent: it is over."""
        if flow.paced:
            self._unpace(flow)
            sent = flow.made_before + flow.piece_bytes
        else:
            sent = 0
        flow.next_piece(self.at)
        if flow.greedy:
            if not flow.pace and flow.piece_ends == math.inf:
                del self.late[flow.number]
                heapq.heappush(self._ends, (flow.mark + flow.size, flow.number, flow))
        elif sent == flow.size and flow.piece_ends == math.inf and sent:
            self.leave(flow, sent)
            return True
        elif flow.piece_ends < math.inf and sent == flow.made_before and flow.pace <= self.most * (1 + HAIR):
            self._pace(flow)
        else:
            self.make_greedy(flow, sent)
        return False

    def make_greedy(self, flow: Flow, sent: float) -> None:
        """From now on a flow takes the lane's share."""
        if flow.paced:
            self._unpace(flow)
        flow.greedy, flow.mark = True, self.level - sent
        self._count_greedy(1)
        if flow.piece_ends < math.inf:
            self.late[flow.number] = flow
        else:
            heapq.heappush(self._ends, (flow.mark + flow.size, flow.number, flow))

    def leave(self, flow: Flow, gone: int) -> None:
        """End a flow of which so many bytes were sent."""
        flow.over = True
        self.flows -= 1
        if flow.greedy:
            self._count_greedy(-1)
            self.late.pop(flow.number, None)
        elif flow.paced:
            self._unpace(flow)
        self.moved -= gone
        for resource in self.resources:
            resource.finished_bytes += gone
        if not self.flows:
            self._rest()

    def _rest(self) -> None:
        """Nothing is under way: what rounding left is nothing."""
        for resource in self.resources:
            del resource.active[self]
            resource.paced = resource.paced - self.paced_sum if resource.active else 0.0
        self.moved = self.level = self.paced_sum = 0.0
        self._ends.clear()
        self._fastest.clear()

    def _pace(self, flow: Flow) -> None:
        """From now on a flow sends as it is made."""
        flow.paced = True
        self._count_paced(flow.pace)
        heapq.heappush(self._fastest, (-flow.pace, flow.number, flow))
        if len(self._fastest) > _STALE * self.flows + _STALE:
            self._fastest = [each for each in self._fastest if _is_paced(each)]
            heapq.heapify(self._fastest)

    def _unpace(self, flow: Flow) -> None:
        flow.paced = False
        self._count_paced(-flow.pace)

    def _count_paced(self, pace: float) -> None:
        self.paced_sum += pace
        for resource in self.resources:
            resource.paced += pace

    def _count_greedy(self, one: int) -> None:
        self.greedy += one
        for resource in self.resources:
            resource.greedy += one

    def measure(self) -> None:
        """Find the least capacity on its route, when one may have changed."""
        self.narrowest = min([resource.capacity for resource in self.resources], default=math.inf)

    # -- time ------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Bring all that flows up to now."""
        gap = now - self.at
        self.at = now
        if gap > 0.0 and self.flows:
            got = self.share * gap if self.greedy else 0.0
            self.level += got
            self.moved += self.paced_sum * gap + self.greedy * got

    @property
    def quiet(self) -> bool:
        """Whether nobody wants more than there is, on any of its resources: then its flows are no
        business of other lanes', nor theirs of it."""
        if self.greedy:
            return False
        for resource in self.resources:
            if resource.greedy or resource.paced > resource.capacity * (1 + HAIR):
                return False
        return True

    @property
    def alone(self) -> bool:
        """Whether nobody else is under way on any of its resources."""
        others = [len(resource.active) - (self in resource.active) for resource in self.resources]
        return not any(others)

    def due(self) -> float:
        """When its next greedy flow is sent, or has caught up with its sender."""
        due, level, share = math.inf, self.level, self.share
        while self._ends and self._ends[0][2].over:
            heapq.heappop(self._ends)
        if share <= 0.0:
            return due
        if self._ends:
            due = self.at + max(0.0, self._ends[0][0] - level) / share
        for flow in self.late.values():
            if flow.pace < share:
                backlog = flow.made(self.at) - (level - flow.mark)
                caught_up = self.at + backlog / (share - flow.pace) if backlog > 0.0 else self.at
                if caught_up < due:
                    due = caught_up
        return due

    def catch_up(self) -> None:
        """Greedy flows that have sent all that is made so far are paced by their senders again."""
        hair = self._hair
        for flow in list(self.late.values()):
            if flow.pace <= self.share and flow.made(self.at) - (self.level - flow.mark) <= hair:
                del self.late[flow.number]
                flow.greedy = False
                self._count_greedy(-1)
                self._pace(flow)

    def finish(self, sent: list[Flow]) -> None:
        """End the greedy flows of which all is sent, and add them to the list."""
        while self._ends and self._ends[0][0] <= self.level + self._hair:
            flow = heapq.heappop(self._ends)[2]
            if not flow.over:
                self.leave(flow, flow.size)
                sent.append(flow)

    def sent_of(self, flow: Flow) -> float:
        """Bytes of a flow that are gone."""
        return self.level - flow.mark if flow.greedy else flow.made(self.at)

    def fastest(self) -> Flow | None:
        """Of those that are paced."""
        while self._fastest:
            if _is_paced(self._fastest[0]):
                return self._fastest[0][2]
            heapq.heappop(self._fastest)
        return None

    @property
    def _hair(self) -> float:
        """Bytes too few to count, as floats go: what the share carries in a hair's time."""
        return max(1e-6, HAIR * self.level, HAIR_S * self.share if self.share < math.inf else 0.0)


def _is_paced(entry: tuple[float, int, Flow]) -> bool:
    """Whether a flow still has the pace it was entered with."""
    pace, _, flow = entry
    return flow.paced and -pace == flow.pace
