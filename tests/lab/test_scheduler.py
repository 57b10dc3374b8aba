"""The dual-timescale scheduler on the virtual clock: what it does to a run, and that it loses nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prfaas_lab.lab.arrange import arrange
from prfaas_lab.lab.meanwhile import meanwhile
from prfaas_lab.lab.scheduler import Scheduler
from prfaas_lab.lab.simulate import Simulation, simulate
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.metrics.codec import decode
from prfaas_lab.metrics.events import Event, PlanChanged, RequestSubmitted, RoleChanged
from prfaas_lab.metrics.ledger import Ledger
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


def test_a_static_threshold_makes_no_decisions(tmp_path: Path) -> None:
    _, events = run("drift", "threshold", tmp_path)
    assert events == []


def test_on_a_link_that_binds_the_threshold_rises_and_says_why(tmp_path: Path) -> None:
    summary, events = run("bandwidth-bound", "prfaas", tmp_path)
    changes = [event for event in events if isinstance(event, PlanChanged)]
    assert max(event.threshold_tokens or 0 for event in changes) > 2 * 19_400
    assert any("scarce" in event.reason for event in changes)
    assert summary["failed"] == 0


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
