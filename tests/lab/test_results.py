"""Claims about the directory that a run leaves its files in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prfaas_lab.errors import LabError
from prfaas_lab.lab.results import results_in, write_results
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.tally import Tally
from prfaas_lab.spec.load import load_scenario

RESOLVED = load_scenario(Path(__file__).with_name("few.yaml"))


def test_nothing_of_an_earlier_run_is_left_beside_a_new_one_s_files(tmp_path: Path) -> None:
    earlier = ["summary.json", "requests.jsonl", "events.jsonl", "zygote.log", "local-west-d0.log"]
    for name in [*earlier, "verifier-1.log", "notes.md", "mine.log"]:
        (tmp_path / name).write_text("old")
    with results_in(tmp_path, RESOLVED):
        assert {path.name for path in tmp_path.iterdir()} == {"scenario.yaml", "notes.md", "mine.log"}


def test_two_runs_never_write_into_one_directory(tmp_path: Path) -> None:
    with results_in(tmp_path / "new", RESOLVED):
        with pytest.raises(LabError, match="another run") as refused, results_in(tmp_path / "new", RESOLVED):
            pytest.fail("two runs write into one directory")
        assert "--out" in str(refused.value)
        assert (tmp_path / "new" / "scenario.yaml").exists()
    with results_in(tmp_path / "new", RESOLVED):
        pass  # once the first is over the directory is free


def test_a_place_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(LabError, match="cannot be written") as refused, results_in(place, RESOLVED):
            pytest.fail("written")
        assert str(place) in str(refused.value)


def test_a_fault_in_mid_run_leaves_an_invalid_summary_that_names_it(tmp_path: Path) -> None:
    submitted = ev.RequestSubmitted(at_s=1.0, request_id="r0", prompt_tokens=5, output_tokens=2)
    tally = Tally.of([ev.PhaseChanged(at_s=0.5, name="running"), submitted])
    write_results(tmp_path, tally, fault="tun process: pid 7 has ended")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["fault"] == "tun process: pid 7 has ended"
    assert summary["fidelity"]["verdict"] == "INVALID"
    assert summary["fidelity"]["reasons"][0] == "a fault ended the run: tun process: pid 7 has ended"
    assert summary["submitted"] == 1
    assert len((tmp_path / "requests.jsonl").read_text().splitlines()) == 1
