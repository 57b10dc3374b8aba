"""Claims about many simulations: sweeps, capacity, and the error against an emulation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from prfaas_lab.errors import UsageError
from prfaas_lab.lab.capacity import capacity, slo_of, unit_of
from prfaas_lab.lab.sim_error import errors
from prfaas_lab.lab.simulate import simulate
from prfaas_lab.lab.sweep import Point, grid_of, local, points_of, sweep, write_table
from prfaas_lab.lab.vary import varied
from prfaas_lab.spec.load import load_scenario
from prfaas_lab.spec.scenario import Resolved

ROOT = Path(__file__).parents[2]
GRID = ["policy=threshold,local-only", "topology.links.wan.rate=20Gbit,100Gbit"]


@pytest.fixture
def smoke() -> Resolved:
    return load_scenario(ROOT / "scenarios" / "smoke.yaml")


def here(points: Sequence[Point]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The last first, as no executor promises an order."""
    for number in reversed(range(len(points))):
        yield number, points[number].run()


def table(smoke: Resolved, out: Path, execute: Any = here) -> str:
    rows = sweep(points_of(smoke, grid_of(GRID), 2, out), execute, lambda done: None)
    write_table(rows, out / "table.csv")
    return (out / "table.csv").read_text()


def test_a_sweep_is_every_combination_with_every_seed(smoke: Resolved, tmp_path: Path) -> None:
    lines = table(smoke, tmp_path).splitlines()
    assert lines[0].startswith("policy,topology.links.wan.rate,seed,submitted,")
    assert len(lines) == 1 + 2 * 2 * 2
    first, second = (line.split(",")[:3] for line in lines[1:3])
    assert first == ["threshold", "20Gbit", "3"]
    assert second == ["threshold", "20Gbit", "4"]


def test_two_processes_give_the_table_of_one(smoke: Resolved, tmp_path: Path) -> None:
    assert table(smoke, tmp_path / "two", local(2)) == table(smoke, tmp_path / "one")


def test_a_sweep_goes_on_where_it_was_stopped(smoke: Resolved, tmp_path: Path) -> None:
    complete = table(smoke, tmp_path)
    points = points_of(smoke, grid_of(GRID), 2, tmp_path)
    kept, lost = (Path(points[n].directory) / "summary.json" for n in (0, 1))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    assert table(smoke, tmp_path) == complete
    assert kept.stat().st_mtime_ns == before


def test_a_changed_scenario_is_run_anew(smoke: Resolved, tmp_path: Path) -> None:
    table(smoke, tmp_path)
    other = varied(smoke, {"workload.requests": "6"}, tmp_path / "other.yaml")
    assert ",6,6,0," in table(other, tmp_path)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        (["policy"], "no grid"),
        (["=3"], "no grid"),
        (["policy="], "no grid"),
        (["seed=1,2"], "--seeds"),
        (["rate=1", "rate=2"], "rate is given twice"),
    ],
)
def test_what_is_no_grid_is_refused(grid: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        grid_of(grid)


def test_a_value_in_brackets_may_have_commas(smoke: Resolved, tmp_path: Path) -> None:
    grid = grid_of(["workload.prompt.tokens=[96, 640],[64,128]"])
    assert grid == {"workload.prompt.tokens": ["[96, 640]", "[64,128]"]}
    shorter = load_scenario(Path(points_of(smoke, grid, 1, tmp_path)[1].directory) / "scenario.yaml")
    assert shorter.scenario.workload.prompt.tokens == (64, 128)  # type: ignore[union-attr]


def test_a_key_that_leads_nowhere_and_a_value_that_cannot_be_are_told_before_anything_runs(
    smoke: Resolved, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for grid, says in (
        ("nothing.here=1", "no 'nothing'"),
        (
            "topology.links.wan.rate=5Gbit,fast",
            "^--grid topology.links.wan.rate=fast: topology.links.wan.rate",
        ),
        ("policy.treshold=3", "did you mean threshold"),
        ("policy=threshold,tresholt", "there is no policy 'tresholt'"),
    ):
        with pytest.raises(UsageError, match=says):
            points_of(smoke, grid_of([grid]), 1, out)
        assert not out.exists(), grid


def test_capacity_is_found_between_a_rate_that_holds_and_one_that_does_not(tmp_path: Path) -> None:
    (tmp_path / "paper.yaml").write_text(
        f"""
name: paper
topology: {ROOT / "topologies" / "paper-case-study.yaml"}
engine: {{executor: paced, max_queue: 4096}}
workload:
  requests: 150
  arrivals: {{kind: poisson, rate: 1/s}}
  prompt: {{kind: lognormal, mu: 9.9, sigma: 1.0, min: 128, max: 128Ki}}
  output: {{kind: fixed, tokens: 64}}
policy: {{name: threshold, threshold: 19400}}
duration: 1h
"""
    )
    resolved = load_scenario(tmp_path / "paper.yaml")
    best, trials = capacity(
        resolved, slo_of("ttft_p90=20s,tpot_p99=50ms"), precision=0.1, told=lambda t: None
    )
    assert best is not None
    breaking = min(trial.rate for trial in trials if not trial.holds)
    assert best.rate < breaking <= 1.1 * best.rate
    assert best.summary["p90_ttft_ms"] <= 20_000


def test_a_simulation_has_no_error_against_itself(smoke: Resolved) -> None:
    summary = json.loads(json.dumps(simulate(smoke)))
    assert all(error.share == 0 for error in errors([summary], summary))


def test_a_bound_must_be_one() -> None:
    with pytest.raises(UsageError, match="no bound"):
        slo_of("ttft=5s")
    with pytest.raises(UsageError, match="never hold"):
        slo_of("ttft_p90=0s")


def test_a_rate_is_called_what_it_is() -> None:
    units = {name: unit_of(load_scenario(ROOT / "scenarios" / f"{name}.yaml").scenario)
             for name in ("smoke", "multi-turn", "mooncake")}  # fmt: skip
    assert units == {"smoke": "req/s", "multi-turn": "sessions/s", "mooncake": "times the trace's rate"}
