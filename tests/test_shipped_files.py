"""Every topology and scenario that we ship reads, runs again as resolved, and helps editors."""

from __future__ import annotations

from pathlib import Path

import pytest

from prfaas_lab.spec import dump, kind_of, load_scenario, load_topology
from prfaas_lab.workload import generate

ROOT = Path(__file__).parent.parent
TOPOLOGIES = sorted((ROOT / "topologies").glob("**/*.yaml"))
SCENARIOS = sorted((ROOT / "scenarios").glob("**/*.yaml"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_some() -> None:
    assert TOPOLOGIES
    assert SCENARIOS


@pytest.mark.parametrize("path", TOPOLOGIES, ids=named)
def test_a_shipped_topology_loads(path: Path) -> None:
    assert kind_of(path) == "topology"
    assert load_topology(path).name == path.stem


@pytest.mark.parametrize("path", SCENARIOS, ids=named)
def test_a_shipped_scenario_loads_and_asks_for_something(path: Path) -> None:
    assert kind_of(path) == "scenario"
    scenario = load_scenario(path).scenario
    assert scenario.name == path.stem
    stream = generate(scenario.workload, seed=scenario.seed, vocab_size=512, duration_s=scenario.duration)
    assert next(stream).prompt_tokens > 0


@pytest.mark.parametrize("path", SCENARIOS, ids=named)
def test_a_resolved_scenario_is_a_scenario_again(path: Path, tmp_path: Path) -> None:
    resolved = load_scenario(path)
    copy = tmp_path / "scenario.yaml"
    copy.write_text(dump(resolved))
    again = load_scenario(copy)
    assert again.scenario == resolved.scenario
    assert again.topology == resolved.topology


@pytest.mark.parametrize("path", [*TOPOLOGIES, *SCENARIOS], ids=named)
def test_the_first_line_names_the_schema_for_editors(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    prefix = "# yaml-language-server: $schema="
    assert first.startswith(prefix)
    schema = (path.parent / first.removeprefix(prefix)).resolve()
    assert schema == ROOT / "prfaas_lab" / "spec" / "schemas" / f"{kind_of(path)}.json"
    assert schema.is_file()
