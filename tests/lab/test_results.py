"""Claims about the directory that a run leaves its files in."""

from __future__ import annotations

from pathlib import Path

import pytest

from prfaas_lab.errors import LabError
from prfaas_lab.lab.results import results_in
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
