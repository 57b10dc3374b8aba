"""What the screen shows, folded from the events of a run: no clock, no terminal."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from prfaas_lab.dashboard.glyphs import Point
from prfaas_lab.dashboard.log import Log, LogLine
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.handover import LEGS, handover
from prfaas_lab.metrics.requests import RequestRecord
from prfaas_lab.metrics.tally import Tally
from prfaas_lab.metrics.windows import Windows

STEPS = ("network", "model", "engines", "links")
"""The steps of bringing a run up."""
POINT_S = 0.49
"""A point of a link's history covers about half a second, however often it is sampled."""
HISTORY = 240
RECENT = 64


class Slope:
    """How fast a total grows, over about the last second."""

    SPAN_S = 1.05

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque(maxlen=32)

    def add(self, at_s: float, total: float) -> None:
        if not self._points or at_s > self._points[-1][0]:
            self._points.append((at_s, total))
        while len(self._points) > 2 and self._points[1][0] <= at_s - self.SPAN_S:
            self._points.popleft()

    @property
    def per_s(self) -> float | None:
        """None until there are two points."""
        if len(self._points) < 2:
            return None
        (start_s, start), (end_s, end) = self._points[0], self._points[-1]
        return (end - start) / (end_s - start_s)


@dataclass(slots=True, kw_only=True)
class LinkTrace:
    """One direction of a link, lately."""

    link: str
    source: str
    destination: str
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=HISTORY))
    rate: Slope = field(default_factory=Slope)
    sample: ev.LinkSampled | None = None
    mark: ev.LinkSampled | None = None
    """The sample at which the last point ended."""
    measured: ev.LinkMeasured | None = None
    transfers: int = 0
    ahead_bytes: int = 0
    """Queued before the workload started, and yet to pass."""
    peak_bps: float = 0.0

    def observe(self, event: ev.LinkSampled, *, working: bool) -> None:
        """Only the workload's traffic is plotted, not that of measuring the link."""
        self.sample = event
        self.rate.add(event.at_s, 8.0 * event.bytes_total)
        if not working or self.mark is None or event.at_s < self.mark.at_s:
            self.mark = event
            self.ahead_bytes = 0 if working else event.backlog_bytes
        elif event.at_s - self.mark.at_s >= POINT_S:
            self._plot(event, self.mark)
            self.mark = event

    def _plot(self, event: ev.LinkSampled, since: ev.LinkSampled) -> None:
        passed = max(0, event.bytes_total - since.bytes_total)
        carried, self.ahead_bytes = max(0, passed - self.ahead_bytes), max(0, self.ahead_bytes - passed)
        point = Point(8 * carried / (event.at_s - since.at_s), event.configured_bps)
        self.points.append(point)
        self.peak_bps = max(self.peak_bps, point.rate_bps)

    @property
    def configured_bps(self) -> float | None:
        latest = self.sample or self.measured
        return latest.configured_bps if latest else None

    @property
    def rtt_ms(self) -> float | None:
        if self.sample is not None and self.sample.rtt_ms is not None:
            return self.sample.rtt_ms
        return self.measured.measured_rtt_ms if self.measured else None


@dataclass(slots=True, kw_only=True)
class EngineTrace:
    """One engine, lately."""

    name: str
    datacenter: str
    role: str
    ready: bool = False
    died: bool = False
    sample: ev.EngineSampled | None = None
    tokens: Slope = field(default_factory=Slope)
    busy: Slope = field(default_factory=Slope)

    def observe(self, event: ev.EngineSampled) -> None:
        self.sample, self.ready = event, True
        self.tokens.add(event.at_s, event.tokens_total)
        self.busy.add(event.at_s, event.busy_s)


class ScreenState:
    """The run as the screen shows it. `observe` every event after `tally` has folded it."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.now_s = 0.0
        self.phases: dict[str, ev.PhaseChanged] = {}
        self.phases_since_s: dict[str, float] = {}
        self.phase = "starting"
        self.windows = Windows()
        self.log = Log()
        self.links: dict[tuple[str, str], LinkTrace] = {}
        self.engines: dict[str, EngineTrace] = {}
        self.machine: ev.MachineSampled | None = None
        self.recent: deque[RequestRecord] = deque(maxlen=RECENT)
        self.legs_ms: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self.legs_of: Counter[bool] = Counter()
        self._crossing: dict[str, tuple[str, str]] = {}

    @classmethod
    def of(cls, events: Iterable[ev.Event]) -> ScreenState:
        """The screen after a stream of events, such as `read_events` gives."""
        state = cls(Tally())
        for event in events:
            state.tally.fold(event)
            state.observe(event)
        return state

    def advance(self, now_s: float) -> None:
        """Time went on without an event."""
        self.now_s = max(self.now_s, now_s)

    def observe(self, event: ev.Event) -> list[LogLine]:
        """Take in one event; returns the lines it gave to the log."""
        self.advance(event.at_s)
        if isinstance(event, ev.RequestEvent):
            self._request(event)
        else:
            self._resource(event)
        return self.log.observe(event)

    def steps(self) -> list[tuple[str, int | None, int | None]]:
        """(name, done, total) of each step of the bring-up, as far as it is known."""
        return [(name, *self._step(name)) for name in STEPS]

    def _step(self, name: str) -> tuple[int | None, int | None]:
        told = self.phases.get(name)
        if told is not None and told.total is not None:
            return told.done, told.total
        if name == "engines" and self.engines:
            return sum(engine.ready for engine in self.engines.values()), len(self.engines)
        if name == "links" and self.links:
            return sum(link.measured is not None for link in self.links.values()), len(self.links)
        return None, None

    def _resource(self, event: ev.Event) -> None:
        match event:
            case ev.RunStarted():
                self._run(event)
            case ev.PhaseChanged():
                self._phase(event)
            case ev.LinkMeasured():
                self._link(event.link, event.source).measured = event
            case ev.LinkSampled():
                self._link(event.link, event.source).observe(event, working=self.tally.stage != "before")
            case ev.EngineStarted():
                self._engine(event.engine, event.datacenter, event.role).ready = True
            case ev.EngineDied():
                self._engine(event.engine).died = True
            case ev.EngineSampled():
                self._engine(event.engine).observe(event)
            case ev.MachineSampled():
                self.machine = event

    def _run(self, event: ev.RunStarted) -> None:
        for name, datacenter, role in event.engines:
            self._engine(name, datacenter, role)
        for name, first, second in event.links:
            self._link(name, first, second)
            self._link(name, second, first)

    def _phase(self, event: ev.PhaseChanged) -> None:
        self.phases[event.name] = event
        self.phases_since_s.setdefault(event.name, event.at_s)
        self.phase = "starting" if event.name in STEPS else event.name

    def _link(self, link: str, source: str, destination: str = "") -> LinkTrace:
        key = (link, source)
        if key not in self.links:
            self.links[key] = LinkTrace(link=link, source=source, destination=destination)
        return self.links[key]

    def _engine(self, name: str, datacenter: str = "", role: str = "") -> EngineTrace:
        if name not in self.engines:
            self.engines[name] = EngineTrace(name=name, datacenter=datacenter, role=role)
        return self.engines[name]

    def _request(self, event: ev.RequestEvent) -> None:
        record = self.tally.requests[event.request_id]
        self.windows.observe(event, record)
        match event:
            case ev.RequestSubmitted():
                self.recent.append(record)
            case ev.TransferStarted():
                self._cross(event)
            case ev.TransferFinished() | ev.RequestFailed():
                self._crossed(event.request_id)
            case ev.RequestFinished() if record.ends == 1 and (legs := handover(record)):
                self.legs_of[record.offloaded] += 1
                self.legs_ms[record.offloaded].update({leg: getattr(legs, leg) for leg in LEGS})

    def _cross(self, event: ev.TransferStarted) -> None:
        ends = self._site(event.source), self._site(event.destination)
        for key, link in self.links.items():
            if (link.source, link.destination) == ends and event.request_id not in self._crossing:
                self._crossing[event.request_id] = key
                link.transfers += 1

    def _crossed(self, request_id: str) -> None:
        key = self._crossing.pop(request_id, None)
        if key is not None:
            self.links[key].transfers -= 1

    def _site(self, engine: str) -> str:
        return self.engines[engine].datacenter if engine in self.engines else ""
