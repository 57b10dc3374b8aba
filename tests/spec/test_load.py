"""Loading: two files at once, hostile files, settled paths, and resolved scenarios that run again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prfaas_lab.errors import SpecError
from prfaas_lab.spec import dump, kind_of, load_scenario, load_topology
from prfaas_lab.spec.scenario import CsvTrace, Scenario
from prfaas_lab.spec.topology import Topology

TOPOLOGY = """\
name: pair
datacenters:
  east: {role: prfaas, engines: {prefill: 1}}
  west: {role: local, engines: {prefill: 1, decode: 1}}
links:
  wan: {between: [east, west], rate: 10Gbit, delay: 5ms}
"""
SCENARIO = """\
name: trial
topology: pair.yaml
workload:
  requests: 5
  arrivals: {kind: onoff, rate: 2/s, on: 1s, off: 2s}
  prompt: {kind: fixed, tokens: 10}
  output: {kind: fixed, tokens: 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pair.yaml").write_text(TOPOLOGY)
    (tmp_path / "trial.yaml").write_text(SCENARIO)
    return tmp_path


def problems(path: Path, load: Any = load_scenario) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        load(path)
    return caught.value.problems


def test_a_scenario_brings_its_topology_along(folder: Path) -> None:
    resolved = load_scenario(folder / "trial.yaml")
    assert resolved.topology == load_topology(folder / "pair.yaml")
    assert resolved.scenario.topology == resolved.topology
    assert resolved.source == str(folder / "trial.yaml")


def test_on_and_off_are_words_in_our_files(folder: Path) -> None:
    arrivals = load_scenario(folder / "trial.yaml").scenario.workload.arrivals
    assert (arrivals.on, arrivals.off) == (1.0, 2.0)  # type: ignore[union-attr]


def test_mistakes_of_both_files_come_at_once_and_each_names_its_own(folder: Path) -> None:
    (folder / "pair.yaml").write_text(TOPOLOGY.replace("5ms", "5").replace("prfaas", "remote"))
    (folder / "trial.yaml").write_text(SCENARIO + "seed: x\nevents: [{at: 1s, link: lan, outage: 1s}]\n")
    assert problems(folder / "trial.yaml") == (
        f"{folder}/pair.yaml:3: datacenters.east.role: 'remote' is not known here (write prfaas or local)",
        f"{folder}/pair.yaml:6: links.wan.delay: '5' has no unit for a duration (write 25ms or 1.5s)",
        f"{folder}/trial.yaml:8: seed: 'x' is not a whole number (write digits only)",
        f"{folder}/trial.yaml:9: events[0].link: there is no link 'lan' (did you mean wan?)",
    )


def test_an_unreadable_topology_does_not_hide_the_scenarios_mistakes(folder: Path) -> None:
    (folder / "pair.yaml").write_text("a: [")
    (folder / "trial.yaml").write_text(SCENARIO + "seed: x\n")
    one, other = problems(folder / "trial.yaml")
    assert one.startswith(f"{folder}/pair.yaml:1: is not YAML")
    assert other.startswith(f"{folder}/trial.yaml:8: seed")


def test_a_topology_that_is_a_directory_is_said_to_be_one(folder: Path) -> None:
    (folder / "trial.yaml").write_text(SCENARIO.replace("pair.yaml", "."))
    assert problems(folder / "trial.yaml") == (f"{folder}: is a directory (name a .yaml file in it)",)


def test_a_scenario_in_the_place_of_a_topology_is_told_by_its_keys(folder: Path) -> None:
    (folder / "trial.yaml").write_text(SCENARIO.replace("pair.yaml", "trial.yaml"))
    assert any("missing key 'datacenters'" in problem for problem in problems(folder / "trial.yaml"))


HOSTILE = {
    "empty": (b"", "is empty"),
    "only comments": (b"# nothing\n", "is empty"),
    "null": (b"~\n", "is not a mapping"),
    "a word": (b"hello\n", "is not a mapping"),
    "a number": (b"12\n", "is not a mapping"),
    "binary": (b"\x00\x01\x02\x03", "is not text"),
    "an ELF header": (b"\x7fELF\x02\x01\x01\x00\xff\xfe", "is not UTF-8"),
    "UTF-16": ("name: x\n".encode("utf-16"), "is not UTF-8"),
    "Latin-1": (b"name: x\ndescription: caf\xe9\n", ":2: is not UTF-8"),
    "huge": (b"a: 1\n" * 300_000, "is larger than 1 MiB"),
    "deep lists": (b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
    "deeper lists": (b"[" * 500_000, "nested too deeply"),
    "deep mappings": (b"\n".join(b" " * i + b"a:" for i in range(60)), "nested too deeply"),
    "alias bomb": (
        b"a0: &a0 [x, x]\n"
        + b"".join(
            b"a%d: &a%d [*a%d, *a%d, *a%d, *a%d]\n" % (i, i, i - 1, i - 1, i - 1, i - 1) for i in range(1, 30)
        ),
        "use fewer YAML aliases",
    ),
    "a list within itself": (b"a: &a [*a]\n", "nested too deeply"),
    "a mapping within itself": (b"&a\nname: x\nlinks: *a\n", "nested too deeply"),
    "open quote": (b"name: 'x\n", "is not YAML"),
    "a list as key": (b"? [a, b]\n: 1\n", "a key must be text"),
    "a huge key": (b"k" * 1000 + b": 1\n", "unknown key"),
    "a directive": (b"%YAML 9.9\n---\nname: x\n", ""),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("load", [load_scenario, kind_of])
def test_a_hostile_file_gets_a_short_answer(tmp_path: Path, content: tuple[bytes, str], load: Any) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_bytes(content[0])
    found = problems(path, load)
    if load is not kind_of:
        assert any(content[1] in problem for problem in found), found
    for problem in found:
        assert str(path) in problem
        assert len(problem) < 400


def test_an_endless_number_is_no_number(folder: Path) -> None:
    (folder / "trial.yaml").write_text(SCENARIO + f"seed: {'9' * 10_000}\nscale: 1e999\n")
    seed, scale = problems(folder / "trial.yaml")
    assert "'9999999999999999999999999999999999999...' is not a whole number" in seed
    assert ":9: scale: 'inf' is not a finite number" in scale


def test_what_is_no_file_is_said_to_be_none(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.yaml") == (f"{tmp_path}/none.yaml: no such file (check the path)",)
    assert problems(tmp_path) == (f"{tmp_path}: is a directory (name a .yaml file in it)",)
    (tmp_path / "file").touch()
    assert "cannot be read" in problems(tmp_path / "file" / "below.yaml")[0]
    assert "cannot be read" in problems(Path("nul\0byte"))[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_said_to_be_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.touch(mode=0)
    assert "Permission denied" in problems(path)[0]


def test_a_bom_and_windows_line_ends_do_no_harm(folder: Path) -> None:
    text = "\ufeff" + TOPOLOGY.replace("\n", "\r\n")
    (folder / "pair.yaml").write_bytes(text.encode())
    assert load_topology(folder / "pair.yaml").name == "pair"


def test_a_name_cannot_smuggle_control_characters_to_the_terminal(folder: Path) -> None:
    (folder / "pair.yaml").write_text(TOPOLOGY + '"\\e[2J\\n": 1\n')
    (problem,) = problems(folder / "pair.yaml", load_topology)
    assert problem.isprintable()


def test_a_kind_is_told_by_keys(folder: Path) -> None:
    assert kind_of(folder / "pair.yaml") == "topology"
    assert kind_of(folder / "trial.yaml") == "scenario"
    (folder / "other.yaml").write_text("version: 3\nservices: {}\n")
    assert "neither a topology" in problems(folder / "other.yaml", kind_of)[0]


def test_paths_are_settled_so_that_a_resolved_scenario_runs_from_anywhere(folder: Path) -> None:
    (folder / "rates.csv").write_text("0,1e6\n")
    (folder / "weights").mkdir()
    fluctuation = "fluctuations: [{link: wan, bandwidth: {kind: csv, file: rates.csv}}]\n"
    (folder / "trial.yaml").write_text(SCENARIO + fluctuation + "model: {path: weights}\n")
    scenario = load_scenario(folder / "trial.yaml").scenario
    assert scenario.fluctuations[0].bandwidth == CsvTrace(kind="csv", file=str(folder / "rates.csv"))
    assert scenario.model.path == str(folder / "weights")


def test_a_hub_id_is_left_alone(folder: Path) -> None:
    (folder / "trial.yaml").write_text(SCENARIO + "model: {path: org/name}\n")
    assert load_scenario(folder / "trial.yaml").scenario.model.path == "org/name"


def test_a_resolved_scenario_needs_no_other_file(folder: Path, tmp_path_factory: Any) -> None:
    resolved = load_scenario(folder / "trial.yaml")
    copy = tmp_path_factory.mktemp("run") / "scenario.yaml"
    copy.write_text(dump(resolved))
    for file in folder.iterdir():
        file.unlink()
    again = load_scenario(copy)
    assert (again.scenario, again.topology) == (resolved.scenario, resolved.topology)
    assert dump(again).splitlines()[1:] == dump(resolved).splitlines()[1:]


words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"]), max_size=30)
tricky = st.sampled_from(
    ["on", "off", "1e3", "1:30", "0x1F", "~", "null", "2001-01-01", "a: b", "- x", "'", "#"]
)
rates = st.floats(1, 1e13)
delays = st.floats(0, 1e4)


@given(
    description=words | tricky, rate=rates, delay=delays, scale=st.floats(1e-9, 1), seed=st.integers(0, 2**62)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=50)
def test_any_scenario_survives_being_written(
    folder: Path, description: str, rate: float, delay: float, scale: float, seed: int
) -> None:
    topology = yaml.safe_load(TOPOLOGY)
    topology["links"]["wan"] |= {"rate": rate, "delay": delay, "loss": {"p": scale, "r": 0.5}}
    scenario = Scenario.model_validate(
        {
            "name": "trial", "description": description, "topology": Topology.model_validate(topology),
            "scale": scale, "seed": seed, "duration": delay + 1,
            "workload": {
                "arrivals": {"kind": "poisson", "rate": rate},
                "prompt": {"kind": "fixed", "tokens": 3}, "output": {"kind": "fixed", "tokens": 3},
            },
            "events": [{"at": delay, "link": "wan", "cross_traffic": rate}],
        }
    )  # fmt: skip
    resolved = load_scenario(folder / "trial.yaml").model_copy(update={"scenario": scenario})
    (folder / "copy.yaml").write_text(dump(resolved))
    assert load_scenario(folder / "copy.yaml").scenario == scenario
