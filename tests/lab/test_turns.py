"""Conversations on real engines, on caches too small for them: found again, also on disk, and said right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of tests/lab/turns.yaml: its summary, its cache report, and the run's id."""
    out, spill = tmp_path_factory.mktemp("turns"), tmp_path_factory.mktemp("disk")
    lab = [sys.executable, "-m", "prfaas_lab"]
    finished = subprocess.run(
        [*lab, "scenario", "tests/lab/turns.yaml", "--headless", "--out", str(out), "--allow-unfaithful"],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(spill)}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    told = subprocess.run(
        [*lab, "cache-report", str(out), "--json"], cwd=ROOT, capture_output=True, timeout=300, check=True
    )
    return {
        "summary": json.loads((out / "summary.json").read_text()),
        "report": json.loads(told.stdout),
        "spill": spill,
    }


def test_later_turns_resume_and_every_answer_is_that_of_one_process(run: dict[str, Any]) -> None:
    summary, report = run["summary"], run["report"]
    assert summary["submitted"] == summary["completed"] == 9
    assert (summary["verify"]["compared"], summary["verify"]["mismatched"]) == (9, 0)
    assert report["cached_tokens"] > report["computed_tokens"] / 2


def test_what_decode_computed_is_handed_over_and_resumed_from(run: dict[str, Any]) -> None:
    report = run["report"]
    assert report["answers"] == 9
    assert 0 < report["decoded_tokens"] < report["cached_tokens"]
    assert report["transfers_made"] == 3 * 9, "each request's tail, and its answer at both ends, were counted"
    assert report["transfers_refused"] == 0


def test_what_memory_could_not_keep_came_back_from_disk(run: dict[str, Any]) -> None:
    report = run["report"]
    assert report["spilled"] > 0
    assert report["reloaded"] > 0
    assert report["disk_hit_tokens"] > 0
    assert report["damaged"] == 0


def test_no_file_is_left(run: dict[str, Any]) -> None:
    assert not list(run["spill"].glob("prfaas-lab-*"))
