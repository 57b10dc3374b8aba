"""The dual-timescale scheduler on the virtual clock: what it does to a run, and that it loses nothing."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prfaas_lab.lab.arrange import arrange
from prfaas_lab.lab.engines import Engine
from prfaas_lab.lab.meanwhile import meanwhile
from prfaas_lab.lab.scheduler import Scheduler
from prfaas_lab.lab.simulate import Simulation, simulate
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.metrics.codec import decode
from prfaas_lab.metrics.events import (
    Event,
    PlanChanged,
    PrefillFinished,
    RequestMoved,
    RequestSubmitted,
    RoleChanged,
)
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.planner.fleet import fleet_of
from prfaas_lab.planner.lengths import law_of
from prfaas_lab.planner.planning import CASE_PROMPT
from prfaas_lab.planner.setting import Setting
from prfaas_lab.router import POLICIES, PathView, Placement, Plan, View
from prfaas_lab.spec import load_scenario
from prfaas_lab.spec.scenario import Event as ScenarioEvent
from prfaas_lab.spec.scenario import Policy
from prfaas_lab.workload.request import Request

SCENARIOS = Path(__file__).parents[2] / "scenarios"


def run(name: str, policy: str, out: Path, **scenario: Any) -> tuple[dict[str, Any], list[Event]]:
    resolved = arrange(load_scenario(SCENARIOS / f"{name}.yaml"), policy).resolved
    changed = resolved.scenario.model_copy(update=scenario)
    summary = simulate(resolved.model_copy(update={"scenario": changed}), Simulation(out=out))
    events = [decode(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return summary, [event for event in events if isinstance(event, PlanChanged | RoleChanged)]


@pytest.fixture(scope="module")
def drift(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Event]]:
    return run("drift", "prfaas", tmp_path_factory.mktemp("drift"))


def test_when_the_mix_changes_instances_convert_and_nothing_is_lost(
    drift: tuple[dict[str, Any], list[Event]],
) -> None:
    summary, events = drift
    converted = [event for event in events if isinstance(event, RoleChanged)]
    assert converted
    assert all((event.before, event.after) == ("decode", "prefill") for event in converted)
    assert all("prefill-bound" in event.reason and event.switch_s >= 0.99 for event in converted)
    assert (summary["failed"], summary["in_flight"]) == (0, 0)
    assert summary["submitted"] == summary["completed"]


@pytest.mark.parametrize("name", ["drift", "bandwidth-bound"])
def test_what_is_moved_off_an_instance_that_drains_is_served_once_by_another(
    name: str, tmp_path: Path
) -> None:
    """Before its prefill, and on a link that binds also after it."""
    summary, _ = run(name, "prfaas", tmp_path)
    events = [decode(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    prefilled = Counter(event.request_id for event in events if isinstance(event, PrefillFinished))
    moved = {event.request_id: event for event in events if isinstance(event, RequestMoved)}
    late = {
        event.request_id
        for event in events
        if isinstance(event, PrefillFinished)
        and event.request_id in moved
        and event.at_s < moved[event.request_id].at_s
    }
    assert moved
    assert bool(late) == (name == "bandwidth-bound")
    assert summary["completed"] == summary["submitted"] == len(prefilled) == prefilled.total()
    rows = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert all(row["decode"] == row["destination"] and row["prefill"] == row["source"] for row in rows)
    assert all(row["decode"] == moved[row["id"]].decode for row in rows if row["id"] in moved)
    assert not any(row["violations"] for row in rows)


def test_a_static_threshold_makes_no_decisions(tmp_path: Path) -> None:
    _, events = run("drift", "threshold", tmp_path)
    assert events == []


def test_on_a_link_that_binds_the_threshold_rises_and_says_why(tmp_path: Path) -> None:
    summary, events = run("bandwidth-bound", "prfaas", tmp_path)
    changes = [event for event in events if isinstance(event, PlanChanged)]
    assert max(event.threshold_tokens or 0 for event in changes) > 2 * 19_400
    assert any("scarce" in event.reason for event in changes)
    assert summary["failed"] == 0


def test_an_outage_is_no_reason_to_convert_back_and_forth(tmp_path: Path) -> None:
    _, events = run("fluctuating", "prfaas", tmp_path, seed=2)
    ways = [event.after for event in events if isinstance(event, RoleChanged)]
    assert ways == ["prefill"]


def test_for_a_link_that_stays_down_instances_convert(tmp_path: Path) -> None:
    outage = ScenarioEvent.model_validate({"at": "60s", "link": "vpc", "outage": "600s"})
    _, events = run("fluctuating", "prfaas", tmp_path, fluctuations=(), events=(outage,))
    assert [event.after for event in events if isinstance(event, RoleChanged)][:1] == ["prefill"]


def traffic(rate: str, *, lasts: str | None = None) -> Any:
    """What the link gives falls, and its configured rate says nothing of it."""
    given = {"at": "30s", "link": "vpc", "source": "prfaas-h200", "cross_traffic": rate, "lasts": lasts}
    return ScenarioEvent.model_validate({key: value for key, value in given.items() if value})


def test_when_others_fill_the_link_the_threshold_rises_though_nobody_tells(tmp_path: Path) -> None:
    summary, events = run("bandwidth-bound", "prfaas", tmp_path, events=(traffic("94Gbit"),))
    static, _ = run("bandwidth-bound", "threshold", tmp_path / "static", events=(traffic("94Gbit"),))
    changes = [event for event in events if isinstance(event, PlanChanged)]
    assert max(event.threshold_tokens or 0 for event in changes) > 2 * 19_400
    assert any("scarce" in event.reason and "above the plan" in event.reason for event in changes)
    assert summary["failed"] == static["failed"] == 0
    assert summary["steady"]["p90_ttft_ms"] < static["steady"]["p90_ttft_ms"] / 2


SEEN: list[PathView] = []


def a_users_own(request: Request, view: View, plan: Plan) -> Placement:
    """Offloads everything, and remembers what it was shown."""
    SEEN.extend(view.paths)
    return POLICIES["remote-all"](request, view, plan)


def test_a_users_own_policy_sees_what_the_link_gives_though_no_loop_runs(tmp_path: Path) -> None:
    SEEN.clear()
    run("bandwidth-bound", f"{__name__}:a_users_own", tmp_path, events=(traffic("94Gbit"),))
    crowded = [path for path in SEEN if path.backlogged and path.available_bps is not None]
    assert crowded
    assert min(path.available_bps / path.rate_bps for path in crowded) == pytest.approx(0.06, rel=0.1)


def test_where_nothing_is_planned_anew_no_request_is_remembered() -> None:
    async def seen() -> int:
        ledger = Ledger(asyncio.get_running_loop().time, 0.0)
        resolved = load_scenario(SCENARIOS / "multi-turn.yaml")  # a real model that nobody calibrated
        asked = resolved.scenario.model_copy(update={"policy": Policy(name="prfaas", threshold=512)})
        service = SimpleNamespace(plan=Plan(threshold_tokens=512))
        scheduler = Scheduler(resolved.model_copy(update={"scenario": asked}), service, {}, ledger)  # type: ignore[arg-type]
        async with meanwhile(scheduler.run()):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            ledger.record(RequestSubmitted(at_s=0.0, request_id="r", prompt_tokens=9, output_tokens=9))
        return len(scheduler._seen)

    assert run_virtual(seen()) == 0


def test_a_link_that_gives_nothing_is_left_alone_until_it_gives_again(tmp_path: Path) -> None:
    summary, events = run(
        "fluctuating", "prfaas", tmp_path, events=(traffic("100Gbit", lasts="60s"),), fluctuations=()
    )
    changes = [event for event in events if isinstance(event, PlanChanged)]
    down = next(event for event in changes if "gives nothing" in event.reason)
    up = next(event for event in changes if "up again" in event.reason)
    assert down.threshold_tokens == 2**20
    assert 3.0 <= down.at_s < 5.0 < 9.0 <= up.at_s < 10.0  # 3 s to 9 s of the run; measured over 1 s
    rows = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert not any(row["offloaded"] for row in rows if down.at_s < row["submitted_s"] < up.at_s)
    assert any(row["offloaded"] for row in rows if row["submitted_s"] > up.at_s + 1.0)
    assert summary["failed"] == 0


class Deployment:
    """The scheduler of `drift` before engines of which nobody asks anything."""

    def __init__(self, prefill: int, decode: int) -> None:
        resolved = load_scenario(SCENARIOS / "drift.yaml")
        (home,) = resolved.topology.local
        self.home = home
        self.engines = {
            f"{role[0]}{number}": Engine(
                name=f"{role[0]}{number}", datacenter=home, role=role, client=None, capacity=1  # type: ignore[arg-type]
            )
            for role, count in (("prefill", prefill), ("decode", decode))
            for number in range(count)
        }  # fmt: skip
        self.ledger = Ledger(asyncio.get_running_loop().time, 0.0)
        self.told: list[Event] = []
        self.ledger.subscribe(self.told.append)
        self.crossing_bytes: dict[str, int] = {}
        self.service = SimpleNamespace(
            plan=Plan(threshold_tokens=19_400),
            relieve=lambda engine: None,
            crossing_bytes=lambda engine: self.crossing_bytes.get(engine.name, 0),
        )
        self.scheduler = Scheduler(resolved, self.service, self.engines, self.ledger)  # type: ignore[arg-type]
        self.setting = Setting(
            fleet=fleet_of(resolved.topology), prompts=law_of(CASE_PROMPT), output_tokens=64, mode="exact"
        )
        """Short answers: the more instances prefill, the better, and with a lower threshold."""

    async def replan(self) -> None:
        async with asyncio.timeout(3600):
            await self.scheduler._replan(self.home, self.setting)

    def roles(self) -> list[str]:
        return sorted(engine.role for engine in self.engines.values())

    def busy(self, role: str) -> None:
        for engine in self.engines.values():
            if engine.role == role:
                engine.orders.add("r1")


def test_an_idle_instance_converts() -> None:
    async def run() -> None:
        lab = Deployment(3, 5)
        await lab.replan()
        assert lab.roles() == ["decode"] * 4 + ["prefill"] * 4
        assert any(isinstance(event, RoleChanged) for event in lab.told)

    run_virtual(run())


def test_the_instance_converts_that_has_least_to_wait_for() -> None:
    async def run() -> None:
        lab = Deployment(3, 5)
        lab.crossing_bytes = {"d0": 800, "d1": 700, "d2": 600, "d3": 500, "d4": 900}
        lab.engines["d0"].orders.add("r1")
        asyncio.get_running_loop().call_later(1.0, lab.engines["d3"].orders.discard, "r2")
        lab.engines["d3"].orders.add("r2")
        await lab.replan()
        assert lab.engines["d3"].role == "prefill"

    run_virtual(run())


def test_engines_that_died_are_no_part_of_the_plan() -> None:
    async def run() -> None:
        lab = Deployment(3, 5)
        for name in ("p0", "d0", "d1"):
            lab.engines[name].alive = False
        await lab.replan()
        (changed,) = [event for event in lab.told if isinstance(event, RoleChanged)]
        assert "at N_p 2," in changed.reason
        assert "best 4" in changed.reason, "of the five that live, one decodes"

    run_virtual(run())


def test_an_instance_that_dies_while_it_drains_keeps_its_role_and_the_plan_is_the_old_one() -> None:
    async def run() -> None:
        lab = Deployment(3, 5)
        lab.busy("decode")
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, lambda: [setattr(lab.engines[f"d{n}"], "alive", False) for n in range(5)])
        await lab.replan()
        assert lab.roles() == ["decode"] * 5 + ["prefill"] * 3
        assert not any(isinstance(event, RoleChanged) for event in lab.told)
        assert lab.scheduler._state.planned == pytest.approx(19_400, rel=0.1)

    run_virtual(run())


def test_an_instance_that_does_not_drain_goes_on_in_its_role() -> None:
    async def run() -> None:
        lab = Deployment(3, 5)
        lab.busy("decode")
        await lab.replan()
        assert lab.roles() == ["decode"] * 5 + ["prefill"] * 3
        assert not any(engine.draining for engine in lab.engines.values())
        assert lab.scheduler._state.planned == pytest.approx(19_400, rel=0.1)

    run_virtual(run())
