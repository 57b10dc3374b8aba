"""Everything a summary or a screen needs to know of a run, folded from its events, one by one.

Memory grows with requests, links and engines, never with tokens or samples; with requests in flight
only, when those that have ended are retired.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.caches import Caches
from prfaas_lab.metrics.handover import Account
from prfaas_lab.metrics.percentiles import Samples
from prfaas_lab.metrics.requests import STAMPS, RequestRecord
from prfaas_lab.metrics.resources import CpuUse, Direction, Engine, Machine, Stage
from prfaas_lab.metrics.steady import Window
from prfaas_lab.metrics.totals import Totals

BUNCHED_S = 0.0002
"""No decode step is this short: tokens with a smaller gap waited for each other on their way."""

_AT_ONCE = 256
"""Requests that have ended are added up so many at a time: column by column, not one by one."""
_WORKING = ("running", "draining")
_AFTERWARDS = ("verifying", "teardown", "done")


class Tally:
    """The state of a run after the events so far. The same events give the same tally, live or
    read back from `events.jsonl`."""

    def __init__(self, retire: Callable[[Account], None] | None = None) -> None:
        """With `retire`, a request's account is handed to it and forgotten as soon as it has ended: for
        runs of very many requests, which nobody verifies later."""
        self._retire, self._retired = retire, Totals()
        self._accounts: list[Account] = []
        """Of requests that were retired, and are not yet in the totals."""
        self.sites: dict[str, str] = {}
        """Engine -> datacenter."""
        self.run: ev.RunStarted | None = None
        self.phase: ev.PhaseChanged | None = None
        self.stage: Stage = "before"
        self.policy: str | None = None
        self.threshold_tokens: int | None = None
        self.plans = 0
        self.requests: dict[str, RequestRecord] = {}
        self.outcomes: Counter[str] = Counter()
        self.verified: Counter[str] = Counter()
        self.compared_tokens = self.equal_tokens = 0
        self.routed = self.offloaded = self.emitted_tokens = 0
        self.itl_ms = Samples()
        self.bunched_gaps = 0
        self.directions: dict[tuple[str, str], Direction] = {}
        self.engines: dict[str, Engine] = {}
        self.machine = Machine()
        self.shaper_process = CpuUse()
        self.caches = Caches()
        self.started_s: float | None = None
        self.drains_since_s: float | None = None
        """When the arrivals had stopped."""
        self.ended_s: float | None = None

    @classmethod
    def of(cls, events: Iterable[ev.Event]) -> Tally:
        """The tally of a whole stream, such as `read_events` gives."""
        tally = cls()
        for event in events:
            tally.fold(event)
        return tally

    def fold(self, event: ev.Event) -> None:
        """Take in one event."""
        of_request = _OF_REQUEST.get(type(event))
        if of_request is None:
            if (take := _FOLDS.get(type(event))) is not None:
                take(self, event)
            return
        count, stamp, ends = of_request
        request_id = event.request_id  # type: ignore[attr-defined]  # its type is one of those that have it
        record = self.requests.get(request_id)
        if record is None:
            record = self.requests[request_id] = RequestRecord(id=request_id)
        if count is not None:
            count(self, record, event)
        stamp(record, event)
        if ends:
            self._ended(record)

    def totals(self) -> Totals:
        """Sums over all requests so far."""
        self._add_up()
        totals = self._retired.copy()
        totals.add([*map(Account.of, self.requests.values())], self.sites, self.window)
        return totals

    @property
    def submitted(self) -> int:
        """Requests asked for = completed + failed + in flight, always."""
        return self.outcomes.total()

    @property
    def completed(self) -> int:
        return self.outcomes["completed"]

    @property
    def failed(self) -> int:
        return self.outcomes["failed"]

    @property
    def in_flight(self) -> int:
        return self.outcomes["in flight"]

    @property
    def duration_s(self) -> float:
        """From the workload's start to the end of its last request (so far)."""
        if self.started_s is None or self.ended_s is None:
            return 0.0
        return max(0.0, self.ended_s - self.started_s)

    @property
    def window(self) -> Window:
        """The steady state: from the end of the warm-up to the end of the arrivals (of their duration, of so
        many requests as were asked for, or by hand), or of the last request (so far) if that was before."""
        started_s, run = self.started_s or 0.0, self.run
        warm_up_s, duration_s = (run.warm_up_s, run.duration_s) if run else (0.0, 0.0)
        if run and run.mode == "serve":  # clients come for as long as it serves
            duration_s = math.inf
        ended_s = started_s if self.ended_s is None else self.ended_s
        drains_since_s = math.inf if self.drains_since_s is None else self.drains_since_s
        # The end just counted lies within.
        until_s = min(started_s + duration_s, drains_since_s, math.nextafter(ended_s, math.inf))
        return Window(since_s=started_s + warm_up_s, until_s=until_s)

    @property
    def bunched_fraction(self) -> float | None:
        """Share of the gaps between tokens that are none: tokens that reached the client at once."""
        return self.bunched_gaps / len(self.itl_ms) if len(self.itl_ms) else None

    def direction(self, link: str, source: str) -> Direction:
        key = (link, source)
        if key not in self.directions:
            self.directions[key] = Direction(link=link, source=source)
        return self.directions[key]

    def engine(self, name: str) -> Engine:
        if name not in self.engines:
            self.engines[name] = Engine(name=name)
        return self.engines[name]

    def _submitted(self, record: RequestRecord, event: ev.RequestSubmitted) -> None:
        if record.submissions:
            return
        self.outcomes[record.outcome] += 1
        if self.stage == "before":
            self._begin(event.at_s)
        if record.ended_s is not None:
            self._over(record)

    def _routed(self, record: RequestRecord, event: ev.RequestRouted) -> None:
        self.routed += record.routed_s is None
        self.offloaded += event.offloaded - record.offloaded

    def _prefilled(self, record: RequestRecord, event: ev.PrefillFinished) -> None:
        self.caches.prefilled(event)

    def _transferred(self, record: RequestRecord, event: ev.TransferFinished) -> None:
        self.caches.transferred(event)

    def _tokens(self, record: RequestRecord, event: ev.TokensEmitted) -> None:
        self.emitted_tokens += event.count

    def _verified(self, record: RequestRecord, event: ev.RequestVerified) -> None:
        self.verified[event.outcome] += 1
        self.compared_tokens += event.compared_tokens
        self.equal_tokens += event.equal_tokens

    def _ended(self, record: RequestRecord) -> None:
        if record.ends == 1 and record.submissions:
            self.outcomes["in flight"] -= 1
            self.outcomes[record.outcome] += 1
            self._over(record)
        if self._retire is not None:
            del self.requests[record.id]
            self._account(record, self._retire)

    def _over(self, record: RequestRecord) -> None:
        """A request that was submitted has ended."""
        assert record.ended_s is not None, "an end has its time"
        if self.ended_s is None or record.ended_s > self.ended_s:
            self.ended_s = record.ended_s
        if record.outcome == "completed":
            self.itl_ms.extend([1e3 * gap for gap in record.gaps_s])
            self.bunched_gaps += sum([gap < BUNCHED_S for gap in record.gaps_s])
        del record.gaps_s[:]

    def _account(self, record: RequestRecord, retire: Callable[[Account], None]) -> None:
        account = Account.of(record)
        self._accounts.append(account)
        if len(self._accounts) >= _AT_ONCE:
            self._add_up()
        retire(account)

    def _add_up(self) -> None:
        self._retired.add(self._accounts, self.sites, self.window)
        self._accounts.clear()

    def _begin(self, at_s: float) -> None:
        self.stage, self.started_s = "during", at_s

    def _started(self, event: ev.RunStarted) -> None:
        self.run, self.policy, self.threshold_tokens = event, event.policy, event.threshold_tokens
        self.sites.update((engine, site) for engine, site, _ in event.engines)

    def _phase(self, event: ev.PhaseChanged) -> None:
        self.phase = event
        if event.name == "draining":
            self.drains_since_s = event.at_s
        if event.name in _WORKING and self.stage == "before":
            self._begin(event.at_s)
        elif event.name in _AFTERWARDS:
            self.stage = "after"

    def _plan(self, event: ev.PlanChanged) -> None:
        self.policy, self.threshold_tokens = event.policy, event.threshold_tokens
        self.plans += 1

    def _link_measured(self, event: ev.LinkMeasured) -> None:
        self.direction(event.link, event.source).measure(event)

    def _link_sampled(self, event: ev.LinkSampled) -> None:
        self.direction(event.link, event.source).sample(event, self.stage)

    def _path_sampled(self, event: ev.PathSampled) -> None:
        self.direction(event.link, event.link_source).estimate(event, self.stage)

    def _link_changed(self, event: ev.LinkChanged) -> None:
        self.direction(event.link, event.source).change(event)

    def _engine_started(self, event: ev.EngineStarted) -> None:
        self.engine(event.engine).started = event
        self.sites[event.engine] = event.datacenter

    def _engine_died(self, event: ev.EngineDied) -> None:
        self.engine(event.engine).died = event

    def _engine_sampled(self, event: ev.EngineSampled) -> None:
        self.engine(event.engine).sample(event, self.stage)

    def _cache_sampled(self, event: ev.CacheSampled) -> None:
        self.caches.sampled(event)

    def _cache_copied(self, event: ev.CacheCopied) -> None:
        self.caches.copied(event)

    def _shaper_sampled(self, event: ev.ShaperSampled) -> None:
        self.shaper_process.sample(event.at_s, event.cpu_s, event.waited_s, self.stage)

    def _machine(self, event: ev.MachineSampled) -> None:
        self.machine.sample(event, self.stage)


_COUNTS: dict[type[ev.Event], Callable[[Tally, RequestRecord, Any], None]] = {
    ev.RequestSubmitted: Tally._submitted,
    ev.RequestRouted: Tally._routed,
    ev.PrefillFinished: Tally._prefilled,
    ev.TransferFinished: Tally._transferred,
    ev.TokensEmitted: Tally._tokens,
    ev.RequestVerified: Tally._verified,
}
"""What an event of a request adds up to over all of them; the record does not hold it yet."""
_OF_REQUEST: dict[
    type[ev.Event],
    tuple[Callable[[Tally, RequestRecord, Any], None] | None, Callable[[RequestRecord, Any], None], bool],
] = {
    kind: (_COUNTS.get(kind), stamp, kind in (ev.RequestFinished, ev.RequestFailed))
    for kind, stamp in STAMPS.items()
}
"""Of each event of a request: what it adds up to, how it changes its record, and whether it ends it."""
_FOLDS: dict[type[ev.Event], Callable[[Tally, Any], None]] = {
    ev.RunStarted: Tally._started,
    ev.PhaseChanged: Tally._phase,
    ev.PlanChanged: Tally._plan,
    ev.LinkMeasured: Tally._link_measured,
    ev.LinkSampled: Tally._link_sampled,
    ev.PathSampled: Tally._path_sampled,
    ev.LinkChanged: Tally._link_changed,
    ev.EngineStarted: Tally._engine_started,
    ev.EngineDied: Tally._engine_died,
    ev.EngineSampled: Tally._engine_sampled,
    ev.CacheSampled: Tally._cache_sampled,
    ev.CacheCopied: Tally._cache_copied,
    ev.MachineSampled: Tally._machine,
    ev.ShaperSampled: Tally._shaper_sampled,
}
