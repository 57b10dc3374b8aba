"""Max-min fair shares, found by progressive filling over the lanes that bear on each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prfaas_lab.fabric.fluid_lane import HAIR, Flow, Lane, Resource


def joined(lane: Lane) -> list[Lane]:
    """A lane, and all that share a resource that could be full with it, or with one that does, and so on.

    One that was full when shares were last found counts as well: whoever it held back may have more now."""
    if lane.alone:
        return [lane]
    found, near, looked = {lane}, [lane], set[Resource]()
    for one in near:
        for resource in one.resources:
            if resource in looked:
                continue
            looked.add(resource)
            others = len(resource.active) - (one in resource.active)  # a lane that has just emptied is not
            if others and (resource.level < math.inf or not resource.slack):
                fresh = resource.active.keys() - found
                found |= fresh
                near += fresh
    return sorted(found, key=lambda one: one.number)


def settle(lanes: Sequence[Lane]) -> None:
    """Give each of some joined lanes its share, as of now, and make greedy what cannot keep its pace."""
    if len(lanes) == 1:
        _settle_alone(lanes[0])
        return
    while True:
        _fill([lane for lane in lanes if lane.flows])
        flow = _overrun(lanes)
        if flow is None:
            return
        flow.lane.make_greedy(flow, flow.made(flow.lane.at))


def _settle_alone(lane: Lane) -> None:
    """With nobody to share with, the narrowest of its route is all there is to look at."""
    while True:
        room = lane.narrowest - lane.paced_sum
        fair = max(0.0, room) / lane.greedy if lane.greedy else math.inf
        lane.share = 0.0 if room < -HAIR * lane.narrowest else min(lane.most, fair)
        flow = lane.fastest()
        if flow is None or flow.pace <= lane.share * (1 + HAIR):
            return
        lane.make_greedy(flow, flow.made(lane.at))


def _fill(lanes: list[Lane]) -> None:
    """The tightest resource fixes the share of the lanes on it, the next tightest that of others, and on."""
    left, greedy = _wanted(lanes)
    open_lanes = [lane for lane in lanes if lane.greedy]
    while open_lanes:
        share, fixed = _tightest(open_lanes, left, greedy)
        settled = set(fixed)
        for lane in fixed:
            lane.share = share
            for resource in lane.resources:
                left[resource] -= share * lane.greedy if share < math.inf else 0.0
                greedy[resource] -= lane.greedy
        open_lanes = [lane for lane in open_lanes if lane not in settled]
    for resource, room in left.items():
        if room < -HAIR * resource.capacity:
            resource.level = 0.0
    for lane in lanes:
        if not lane.greedy:
            lane.share = _ceiling(lane)


def _wanted(lanes: Sequence[Lane]) -> tuple[dict[Resource, float], dict[Resource, int]]:
    """What paced flows leave of each resource, and how many greedy ones want it."""
    left: dict[Resource, float] = {}
    greedy: dict[Resource, int] = {}
    for lane in lanes:
        for resource in lane.resources:
            if resource not in left:
                resource.level = math.inf
                left[resource], greedy[resource] = resource.capacity, 0
            left[resource] -= lane.paced_sum
            greedy[resource] += lane.greedy
    return left, greedy


def _tightest(
    lanes: list[Lane], left: dict[Resource, float], greedy: dict[Resource, int]
) -> tuple[float, list[Lane]]:
    """The least share that any of these lanes gets, and the lanes that get it."""
    share, tightest = math.inf, None
    for resource, room in left.items():
        if greedy[resource] > 0 and max(0.0, room) / greedy[resource] < share:
            share, tightest = max(0.0, room) / greedy[resource], resource
    slowest = min(lanes, key=lambda lane: lane.most)
    if slowest.most <= share:
        return slowest.most, [slowest]
    if tightest is None:
        return math.inf, lanes
    tightest.level = share
    return share, [lane for lane in lanes if tightest in lane.resources]


def _overrun(lanes: Sequence[Lane]) -> Flow | None:
    """A paced flow that is faster than a greedy one would be: the fastest of all there are."""
    worst: Flow | None = None
    for lane in lanes:
        flow = lane.fastest()
        if flow is not None and flow.pace > _ceiling(lane) * (1 + HAIR):
            worst = flow if worst is None or flow.pace > worst.pace else worst
    return worst


def _ceiling(lane: Lane) -> float:
    return min(lane.most, min((resource.level for resource in lane.resources), default=math.inf))
