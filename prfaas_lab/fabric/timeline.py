"""What befalls the network and when: fluctuations and events, composed into one shape per direction.

Pure: it is told the time and what the run has come to, and says what is to be changed. Times are
seconds since the workload's start, as emulated (after `time_scale`), and so are rates (`scale`).

When several things bear on one direction: a fluctuation sets the rate in place of the link's own;
an event's `set` overrides it, a later event an earlier one, key by key, until it `lasts`; an outage
stops everything, whatever else holds, and what is queued then keeps the room it had.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.fluctuation import rates
from prfaas_lab.fabric.shape import Shape
from prfaas_lab.spec.scenario import Event, Fluctuation
from prfaas_lab.spec.topology import Impairment
from prfaas_lab.units import format_duration, format_rate

Direction = tuple[str, str]
"""(link, source): the packets that leave datacenter `source` over `link`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShapeChange:
    """A direction gets a new shape, due at a time that may have passed."""

    due_s: float
    link: str
    source: str
    shape: Shape
    what: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrafficChange:
    """Cross traffic starts or stops."""

    due_s: float
    link: str
    source: str
    traffic: float | Literal["tcp"]
    """UDP at so many bit/s, or greedy TCP."""
    starts: bool
    what: str


Change = ShapeChange | TrafficChange


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the run has come to, as far as events wait for it."""

    requests: int = 0
    """Submitted so far."""
    transferring: frozenset[str] = frozenset()
    """Links on which bytes are in flight."""


class Timeline:
    """All that is still to come, and the shape of every direction as it should be now."""

    def __init__(
        self, base: Mapping[Direction, Shape], fluctuations: Sequence[Fluctuation], events: Sequence[Event],
        *, seed: int = 0, base_dir: Path = Path(), scale: float = 1.0, time_scale: float = 1.0,
    ) -> None:  # fmt: skip
        """`base`: the shapes at the start, emulated. Traces are read from `base_dir`, now.

        Raises FabricError for a bad trace, and for a link or source that does not exist.
        """
        self._base, self._shapes = dict(base), dict(base)
        self._scale, self._time_scale = scale, time_scale
        self._rates: dict[Direction, float] = {}
        self._overrides: dict[Direction, dict[int, dict[str, Any]]] = {key: {} for key in base}
        self._outages: dict[Direction, set[int]] = {key: set() for key in base}
        self._agenda: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._touched: dict[Direction, tuple[float, str]] = {}
        self._traffic: list[TrafficChange] = []
        self._events = events
        self._interferences = itertools.count(len(events))
        for number, fluctuation in enumerate(fluctuations):
            self._begin(number, fluctuation, seed, base_dir)
        self._conditional = {number: event for number, event in enumerate(events) if event.at is None}
        for number, event in enumerate(events):
            self._directions(event)
            if event.at is not None:
                self._at(event.at * time_scale, self._start(number, event))

    @property
    def waits(self) -> bool:
        """Whether an event still waits for something other than the time."""
        return bool(self._conditional)

    def add(self, event: Event, now_s: float) -> None:
        """Let an event happen now, whatever its trigger: somebody interferes with the run.

        What is set for good is kept as one override, the last of all, so that interfering often costs
        nothing.
        """
        self._directions(event)
        number = (
            next(self._interferences) if event.lasts is not None or event.outage is not None else _FOR_GOOD
        )
        self._at(now_s, self._start(number, event))

    def next_due(self) -> float:
        """When `advance` next has something to do by the clock alone; infinity for never again."""
        return self._agenda[0][0] if self._agenda else math.inf

    def advance(self, now_s: float, observed: Observed = Observed()) -> list[Change]:
        """What to change now, in order: one change per direction at most, however late it is.

        A change is due when the first of what it makes up for was.
        """
        for number, event in list(self._conditional.items()):
            if _has_come(event, observed):
                del self._conditional[number]
                self._at(now_s, self._start(number, event))
        while self._agenda and self._agenda[0][0] <= now_s:
            due_s, _, happen = heapq.heappop(self._agenda)
            happen(due_s)
        shapes, traffic = list(self._take_touched()), self._traffic
        self._traffic = []
        return [*shapes, *traffic]

    def possible_shapes(self) -> Iterator[tuple[Direction, Shape]]:
        """What events may set, alone: for a shaper to refuse before the run starts."""
        for event in self._events:
            yield from self.shapes_of(event)

    def shapes_of(self, event: Event) -> Iterator[tuple[Direction, Shape]]:
        """What one event sets, alone. Raises FabricError for a link or source that does not exist."""
        for direction in self._directions(event):
            if event.set is not None:
                yield direction, dataclasses.replace(self._base[direction], **self._values(event.set))

    # -- what happens ----------------------------------------------------------------------------

    def _begin(self, number: int, fluctuation: Fluctuation, seed: int, base_dir: Path) -> None:
        """Both directions of a link, when neither is named, share one path."""
        directions = self._directions(fluctuation)
        path = rates(
            fluctuation.bandwidth,
            every_s=fluctuation.every,
            random=Random(f"fluctuation {number} of {seed}"),
            base_dir=base_dir,
        )
        self._follow(path, next(path), directions)

    def _follow(
        self, path: Iterator[tuple[float, float]], step: tuple[float, float], directions: list[Direction]
    ) -> None:
        """Wait for one step of a path, then for the next."""

        def take(due_s: float) -> None:
            rate_bps = step[1] * self._scale / self._time_scale
            for direction in directions:
                self._rates[direction] = rate_bps
                self._touch(direction, due_s, f"rate {format_rate(rate_bps)}")
            following = next(path, None)
            if following is not None:
                self._follow(path, following, directions)

        self._at(step[0] * self._time_scale, take)

    def _start(self, number: int, event: Event) -> Callable[[float], None]:
        """The event, as what is to be done when its time has come."""
        if event.outage is not None:
            return lambda due_s: self._start_outage(number, event, due_s)
        if event.set is not None:
            return lambda due_s: self._start_override(number, event, due_s)
        return lambda due_s: self._start_traffic(event, due_s)

    def _start_outage(self, number: int, event: Event, due_s: float) -> None:
        assert event.outage is not None
        lasts_s = event.outage * self._time_scale
        for direction in self._directions(event):
            self._outages[direction].add(number)
            self._touch(direction, due_s, f"outage for {format_duration(lasts_s)}")

        def end(due_s: float) -> None:
            for direction in self._directions(event):
                self._outages[direction].discard(number)
                self._touch(direction, due_s, "outage over")

        self._at(due_s + lasts_s, end)

    def _start_override(self, number: int, event: Event, due_s: float) -> None:
        assert event.set is not None
        values, what = self._values(event.set), _words(event.set)
        for direction in self._directions(event):
            earlier = self._overrides[direction].pop(number, {})
            self._overrides[direction][number] = {**earlier, **values}
            self._touch(direction, due_s, what)

        def end(due_s: float) -> None:
            for direction in self._directions(event):
                self._overrides[direction].pop(number)
                self._touch(direction, due_s, f"{what}: over")

        if event.lasts is not None:
            self._at(due_s + event.lasts * self._time_scale, end)

    def _start_traffic(self, event: Event, due_s: float) -> None:
        self._add_traffic(event, due_s, starts=True)
        if event.lasts is not None:
            self._at(
                due_s + event.lasts * self._time_scale,
                lambda due_s: self._add_traffic(event, due_s, starts=False),
            )

    def _add_traffic(self, event: Event, due_s: float, *, starts: bool) -> None:
        traffic = event.cross_traffic
        assert traffic is not None
        if traffic != "tcp":
            traffic = traffic * self._scale / self._time_scale
        kind = "greedy TCP" if traffic == "tcp" else f"UDP at {format_rate(traffic)}"
        what = f"cross traffic: {kind}" if starts else f"cross traffic over: {kind}"
        for link, source in self._directions(event):
            self._traffic.append(
                TrafficChange(
                    due_s=due_s, link=link, source=source, traffic=traffic, starts=starts, what=what
                )
            )

    # -- composing -------------------------------------------------------------------------------

    def _compose(self, direction: Direction) -> Shape:
        """The rule of this module, in one place."""
        shape = self._base[direction]
        if direction in self._rates:
            shape = dataclasses.replace(shape, rate_bps=self._rates[direction])
        for values in self._overrides[direction].values():
            shape = dataclasses.replace(shape, **values)
        if self._outages[direction]:
            shape = dataclasses.replace(shape, rate_bps=0.0, queue_bytes=shape.limit_bytes)
        return shape

    def _take_touched(self) -> Iterator[ShapeChange]:
        touched, self._touched = self._touched, {}
        for direction, (due_s, what) in touched.items():
            shape = self._compose(direction)
            if shape != self._shapes[direction]:
                self._shapes[direction] = shape
                link, source = direction
                yield ShapeChange(due_s=due_s, link=link, source=source, shape=shape, what=what)

    def _touch(self, direction: Direction, due_s: float, what: str) -> None:
        first_due_s, _ = self._touched.get(direction, (due_s, ""))
        self._touched[direction] = first_due_s, what

    def _at(self, due_s: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._agenda, (due_s, next(self._order), happen))

    def _directions(self, cause: Fluctuation | Event) -> list[Direction]:
        found = [d for d in self._base if d[0] == cause.link and cause.source in (None, d[1])]
        if not found:
            known = ", ".join(f"{link} from {source}" for link, source in self._base)
            where = f"link {cause.link!r}" + (f" from {cause.source!r}" if cause.source else "")
            raise FabricError("there is no such direction", where=where, remedy=f"have: {known}")
        return found

    def _values(self, impairment: Impairment) -> dict[str, Any]:
        """The keys that an impairment gives, as a shape calls and scales them."""
        shape = Shape.of(impairment, scale=self._scale, time_scale=self._time_scale)
        names = [
            _SHAPE_NAMES.get(key, key)
            for key in Impairment.model_fields
            if key in impairment.model_fields_set
        ]
        return {name: getattr(shape, name) for name in names}


_FOR_GOOD = -1
"""The number of what was set by hand, for good."""

_SHAPE_NAMES = {"rate": "rate_bps", "delay": "delay_s", "jitter": "jitter_s", "queue": "queue_bytes"}


def _has_come(event: Event, observed: Observed) -> bool:
    if event.after_requests is not None:
        return observed.requests >= event.after_requests
    return event.link in observed.transferring


def _words(impairment: Impairment) -> str:
    """What an event sets, as a person wrote it (unscaled)."""
    write: dict[str, Callable[[Any], str]] = {
        "rate": format_rate, "delay": format_duration, "jitter": format_duration,
    }  # fmt: skip
    given = [(key, getattr(impairment, key)) for key in impairment.model_fields_set]
    return ", ".join(f"{key} {write.get(key, str)(value)}" for key, value in sorted(given))
