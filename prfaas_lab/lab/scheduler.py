"""The dual-timescale scheduler at work: it looks, asks the planner's laws, and moves the service's plan.

`short` loop: planner.short_term moves the effective threshold. `long` loop: planner.long_term searches the
plan anew over the last window's requests, and converts instances between prefill and decode. Every decision
is an event with its reason. Runs alike on the real and on the virtual clock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from prfaas_lab.lab.engines import Engine
from prfaas_lab.lab.service import Service
from prfaas_lab.lab.starting import convertible
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.planner.egress import Reading, Way, look
from prfaas_lab.planner.fleet import fleet_of
from prfaas_lab.planner.lengths import Discrete
from prfaas_lab.planner.long_term import Decision, replan, with_rate
from prfaas_lab.planner.setting import Setting
from prfaas_lab.planner.short_term import ShortTerm, Signals, follow_plan, tick
from prfaas_lab.router.values import EngineView, PathView
from prfaas_lab.spec.scenario import Resolved

_FEWEST = 30
"""Requests in a window below which it says nothing of their lengths."""
_WORTH_TELLING = 0.1
"""A threshold that moved by less than this share since it was last told of is not told of."""
_SMOOTHING = 0.1
"""Of the rates that the long-term loop reckons with: over about ten short-term ticks. A way that is down says
nothing of what it will give, until it has been down for a window: instances that were converted for a short
outage were converted back after it."""


class Scheduler:
    """Moves one service's plan, for as long as `run` is left to run and nobody else swaps in another."""

    def __init__(
        self, resolved: Resolved, service: Service, engines: Mapping[str, Engine], ledger: Ledger
    ) -> None:
        self._resolved, self._service, self._engines, self._ledger = resolved, service, engines, ledger
        self._settings, scale = resolved.scenario.scheduler, resolved.scenario.time_scale
        self._short_s, self._long_s = self._settings.short * scale, self._settings.long * scale
        self._window_s, self._switch_s = self._settings.window * scale, self._settings.conversion * scale
        self._plan = service.plan
        """The last that it knows of: with any other, somebody else has taken over."""
        planned = float(service.plan.threshold_tokens or 0)
        self._state = ShortTerm(
            planned=planned, threshold=planned, longest=float(2**20), band_s=self._settings.band * scale
        )
        self._told = planned
        self._seen: deque[tuple[float, int, int]] = deque()
        self._ways: dict[tuple[str, str], Way] = {}
        self._rates: dict[tuple[str, str], float] = {}
        self._up_s: dict[tuple[str, str], float] = {}
        """When each way was last seen up."""
        local = resolved.topology.local
        self._home = local[0] if convertible(resolved, local[0]) else None

    async def run(self) -> None:
        """Both loops, until somebody else swaps in a plan. Cancel it when the run ends."""
        async with asyncio.TaskGroup() as loops:
            long = self._home and loops.create_task(self._long(self._home), name="long-term loop")
            await self._short()
            if long:
                long.cancel()

    @property
    def _in_charge(self) -> bool:
        return self._service.plan is self._plan

    # -- short term ------------------------------------------------------------------------------

    async def _short(self) -> None:
        while True:
            await asyncio.sleep(self._short_s)
            if not self._in_charge:
                return
            before, self._state = self._state, tick(self._state, self._signals())
            self._take(before)

    def _signals(self) -> Signals:
        """Of the way and its PrfaaS site that have least in hand."""
        view = self._service.view()
        roles = {dc.name: dc.role for dc in view.datacenters}
        queues = _shortest_queues(view.engines)
        home_s = min((wait for name, wait in queues.items() if roles[name] == "local"), default=0.0)
        sides = [
            self._side(way, path, queues[path.source], view.ahead_bytes(path), home_s)
            for path in view.paths
            if roles[path.source] == "prfaas" and roles[path.destination] == "local"
            if (way := self._look(path)).up and path.source in queues
        ]
        down = Signals(up=False, utilization=1.0, prfaas_queue_s=0.0, egress_s=0.0, home_queue_s=home_s)
        return min(sides, key=lambda side: side.offload_s, default=down)

    def _side(self, way: Way, path: PathView, queue_s: float, ahead_bytes: float, home_s: float) -> Signals:
        return Signals(
            up=True,
            utilization=way.utilization,
            congested=path.congested,
            prfaas_queue_s=queue_s,
            egress_s=way.wait_s(ahead_bytes),
            home_queue_s=home_s,
        )

    def _look(self, path: PathView) -> Way:
        """What is believed of a way now; its rate is smoothed for the long-term loop."""
        pair = path.source, path.destination
        way = self._ways[pair] = look(self._ways.get(pair, Way()), _reading(path))
        if way.up:
            self._up_s[pair] = self._ledger.now()
        elif self._ledger.now() - self._up_s.get(pair, 0.0) < self._window_s:
            return way
        if way.rate_bps is not None:
            before = self._rates.get(pair, way.rate_bps)
            self._rates[pair] = before + _SMOOTHING * (way.rate_bps - before)
        return way

    def _take(self, before: ShortTerm) -> None:
        state = self._state
        self._service.plan = self._plan = replace(self._plan, threshold_tokens=round(state.threshold))
        moved = abs(state.threshold - self._told) > _WORTH_TELLING * max(self._told, 1.0)
        if moved or (state.up, state.scarce) != (before.up, before.scarce):
            self._tell(state.reason)

    def _tell(self, reason: str) -> None:
        self._told = self._state.threshold
        self._ledger.record(
            ev.PlanChanged(
                at_s=self._ledger.now(),
                policy=self._resolved.scenario.policy.name,
                threshold_tokens=round(self._told),
                reason=reason,
            )
        )

    # -- long term -------------------------------------------------------------------------------

    async def _long(self, home: str) -> None:
        unsubscribe = self._ledger.subscribe(self._observe)
        try:
            while True:
                await asyncio.sleep(self._long_s)
                setting = self._setting()
                if setting is not None and self._in_charge:
                    await self._replan(home, setting)
        finally:
            unsubscribe()

    async def _replan(self, home: str, setting: Setting) -> None:
        prefill, decode = self._alive(home, "prefill"), self._alive(home, "decode")
        if not prefill or not decode:
            return
        settings = self._settings
        decision = replan(
            _of_instances(setting, len(prefill) + len(decode)),
            len(prefill),
            self._state.planned,
            margin=settings.margin,
            cost_s=settings.conversion,
            period_s=settings.long,
            requests=len(self._seen),
        )
        before = self._state.planned
        self._follow(float(decision.threshold_tokens), decision.reason)
        if decision.convert:
            candidates = decode if decision.convert > 0 else prefill  # two at least: one is always left
            engine = min(candidates, key=self._left_to_do)
            failure = await self._convert(engine, decision)
            if failure:
                self._follow(before, failure)

    def _left_to_do(self, engine: Engine) -> tuple[float, int, int, str]:
        """What one engine has to do before it has drained, beside others of its role: less is sooner."""
        return engine.waiting_s, self._service.crossing_bytes(engine), len(engine.orders), engine.name

    def _follow(self, planned: float, reason: str) -> None:
        if abs(planned - self._state.planned) > _WORTH_TELLING * self._state.planned:
            self._state = follow_plan(self._state, planned)
            self._tell(f"long term: {reason}")

    def _alive(self, home: str, role: str) -> list[Engine]:
        return [e for e in self._engines.values() if e.datacenter == home and e.role == role and e.alive]

    def _setting(self) -> Setting | None:
        """The planning problem of the last window; None while it is too thin."""
        since_s = self._ledger.now() - self._window_s
        while self._seen and self._seen[0][0] < since_s:
            self._seen.popleft()
        if len(self._seen) < _FEWEST:
            return None
        fleet = fleet_of(self._resolved.topology, source=self._resolved.source)
        setting = Setting(
            fleet=fleet,
            prompts=Discrete.of(tokens for _, tokens, _ in self._seen),
            output_tokens=fmean(tokens for _, _, tokens in self._seen),
            mode="exact",
        )
        rate_bps = min(self._rates.values(), default=None)
        if rate_bps is None:
            return setting
        scenario = self._resolved.scenario
        paced = scenario.engine.executor == "paced"  # a real model's bytes and seconds are not scaled
        factor = scenario.time_scale / scenario.scale if paced else 1.0
        return with_rate(setting, max(1.0, rate_bps * factor))

    async def _convert(self, engine: Engine, decision: Decision) -> str:
        """Drain, switch, rejoin; what kept it from that, if anything did. The engine takes nothing new from
        the decision on, and takes up its old role where it has not drained within a window: by then, what
        was decided on is over."""
        role, other = ("decode", "prefill") if decision.convert > 0 else ("prefill", "decode")
        began_s = self._ledger.now()
        engine.draining = True
        try:
            while engine.orders and engine.alive:
                if self._ledger.now() - began_s > self._window_s:
                    return f"{engine.name} did not drain"
                self._service.relieve(engine)
                await asyncio.sleep(self._short_s)
            drained_s = self._ledger.now()
            await asyncio.sleep(self._switch_s)
            if not engine.alive:
                return f"{engine.name} died"
            engine.become("prefill" if other == "prefill" else "decode")
        finally:
            engine.draining = False
        self._ledger.record(
            ev.RoleChanged(
                at_s=self._ledger.now(),
                engine=engine.name,
                before=role,
                after=other,
                drain_s=drained_s - began_s,
                switch_s=self._ledger.now() - drained_s,
                reason=decision.reason,
            )
        )
        return ""

    def _observe(self, event: ev.Event) -> None:
        if isinstance(event, ev.RequestSubmitted):
            self._seen.append((event.at_s, event.prompt_tokens, event.output_tokens))


def _of_instances(setting: Setting, alive: int) -> Setting:
    """With so many instances at the one local site."""
    (site,) = setting.fleet.local
    return replace(setting, fleet=replace(setting.fleet, local=(replace(site, instances=alive),)))


def _shortest_queues(engines: Sequence[EngineView]) -> dict[str, float]:
    """What the next prompt would wait for the idlest prefill engine, of each datacenter that has one."""
    shortest: dict[str, float] = {}
    for engine in engines:
        if engine.role == "prefill" and engine.alive:
            wait_s = _queue_s(engine)
            shortest[engine.datacenter] = min(shortest.get(engine.datacenter, wait_s), wait_s)
    return shortest


def _queue_s(engine: EngineView) -> float:
    """By its profile, or where it has none by what its prompts took so far."""
    return engine.queued_s or engine.queued_tokens * (engine.prefill_s_per_token or 0.0)


def _reading(path: PathView) -> Reading:
    return Reading(
        up=path.up,
        configured_bps=path.rate_bps,
        throughput_bps=path.throughput_bps,
        measured_bps=path.available_bps,
        backlogged=path.backlogged,
    )
