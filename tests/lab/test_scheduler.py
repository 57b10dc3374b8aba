"""The dual-timescale scheduler on the virtual clock: what it does to a run, and that it loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prfaas_lab.lab.arrange import arrange
from prfaas_lab.lab.simulate import Simulation, simulate
from prfaas_lab.metrics.codec import decode
from prfaas_lab.metrics.events import Event, PlanChanged, RoleChanged
from prfaas_lab.spec import load_scenario

SCENARIOS = Path(__file__).parents[2] / "scenarios"


def run(name: str, policy: str, out: Path) -> tuple[dict[str, Any], list[Event]]:
    arranged = arrange(load_scenario(SCENARIOS / f"{name}.yaml"), policy)
    summary = simulate(arranged.resolved, Simulation(out=out))
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
