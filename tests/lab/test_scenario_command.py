"""The main job as its user runs it: the command line, real engines, a shaped link, nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prfaas_lab.fabric.namespaces import create, delete

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S, RUN_TIMEOUT_S = 300, 300

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces"),
]


def lab(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "prfaas_lab", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        lab(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
    )


def namespaces() -> set[str]:
    return set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()


def left_by(out: Path) -> set[str]:
    """Namespaces of a run that are still there, and its journal, known by the run id in its events."""
    lines = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    engine = next(line for line in lines if line["kind"] == "EngineStarted")
    run_id = engine["netns"].removeprefix("pl-").removesuffix(f"-{engine['engine']}")
    journal = Path("/run/prfaas-lab") / run_id
    return {name for name in namespaces() if run_id in name} | ({str(journal)} if journal.exists() else set())


def children_of(out: Path) -> set[int]:
    """Every process that has a file of this run open: its zygote, engines and shaper log there."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*/fd"):
        try:
            targets = {os.readlink(link) for link in directory.iterdir()}
        except OSError:
            continue
        if any(target.startswith(str(out)) for target in targets):
            found.add(int(directory.parent.name))
    return found


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of scenarios/smoke.yaml, shared by the claims about it."""
    out = tmp_path_factory.mktemp("smoke")
    finished = run("scenario", "scenarios/smoke.yaml", "--headless", "--out", out, "--allow-unfaithful")
    summary = json.loads((out / "summary.json").read_text()) if (out / "summary.json").exists() else {}
    return {"finished": finished, "out": out, "summary": summary}


def test_every_request_is_served_and_verified(smoke: dict[str, Any]) -> None:
    finished, summary = smoke["finished"], smoke["summary"]
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert summary["submitted"] == summary["completed"] == 12
    assert summary["failed"] == 0
    assert summary["verify"]["compared"] == 12
    assert summary["verify"]["mismatched"] == 0
    assert 0 < summary["offload_fraction"] < 1


def test_kvcache_crossed_the_shaped_link(smoke: dict[str, Any]) -> None:
    summary = smoke["summary"]
    wan = summary["links"]["wan"]
    assert summary["shaper"] in ("netem", "tun")
    assert wan["bytes"] > 500_000
    assert wan["measured_bps"] == pytest.approx(wan["configured_bps"], rel=0.3)


def test_engines_sit_in_namespaces_of_their_own(smoke: dict[str, Any]) -> None:
    engines = smoke["summary"]["engines"].values()
    assert len({engine["netns"] for engine in engines}) == len(engines) == 3
    assert len({engine["pid"] for engine in engines}) == 3


def test_the_handover_ledger_of_every_request_sums_to_its_ttft(smoke: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in (smoke["out"] / "requests.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        assert not row["violations"]
        legs = [value for key, value in row["handover"].items() if key.endswith("_ms")]
        assert sum(legs) == pytest.approx(row["ttft_ms"], abs=0.01)


def test_the_files_of_a_run_are_there_and_its_scenario_is_a_scenario(smoke: dict[str, Any]) -> None:
    out: Path = smoke["out"]
    assert {"summary.json", "requests.jsonl", "events.jsonl", "scenario.yaml"} <= {
        p.name for p in out.iterdir()
    }
    assert run("validate", out / "scenario.yaml").returncode == 0


def test_nothing_is_left_on_the_machine(smoke: dict[str, Any]) -> None:
    assert_gone(smoke["out"])


@pytest.mark.parametrize("kind", ["recurrent-state", "conv-state", "kv-block"])
def test_a_corrupted_transfer_fails_the_run(kind: str, tmp_path: Path) -> None:
    finished = run(
        "scenario",
        "tests/lab/few.yaml",
        "--headless",
        "--out",
        tmp_path,
        "--corrupt",
        kind,
        "--allow-unfaithful",
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert summary["verify"]["mismatched"] > 0
    assert summary["fidelity"]["verdict"] == "INVALID"
    assert "differ from one-process generation" in finished.stderr


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in its middle: requests are in flight."""
    process = subprocess.Popen(
        lab("scenario", "scenarios/bursty.yaml", "--headless", "--out", tmp_path, "--allow-unfaithful"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    events = tmp_path / "events.jsonl"
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (events.exists() and "TokensEmitted" in events.read_text()):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline, "no token within the deadline"
        time.sleep(0.1)
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()
        run("clean")


@pytest.mark.realtime
def test_sigint_drains_and_leaves_nothing(running: subprocess.Popen[str], tmp_path: Path) -> None:
    running.send_signal(signal.SIGINT)
    time.sleep(0.05)  # and once more, as under `timeout`: still one Ctrl-C
    running.send_signal(signal.SIGINT)
    assert running.wait(RUN_TIMEOUT_S) == 130
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stopped"] == "SIGINT"
    assert summary["submitted"] == summary["completed"] > 0
    assert_gone(tmp_path)


def test_sigterm_gives_up_what_is_in_flight_and_leaves_nothing(
    running: subprocess.Popen[str], tmp_path: Path
) -> None:
    running.send_signal(signal.SIGTERM)
    assert running.wait(RUN_TIMEOUT_S) == 143
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["submitted"] == summary["completed"] + summary["failed"]
    assert_gone(tmp_path)


def test_clean_removes_what_a_killed_run_left_and_nothing_else(
    running: subprocess.Popen[str], tmp_path: Path
) -> None:
    running.kill()
    running.wait()
    assert left_by(tmp_path), "a killed run cannot have tidied up"
    stranger = f"pl-stranger-{os.getpid()}"
    create(stranger)
    try:
        cleaned = run("clean")
        assert cleaned.returncode == 0, cleaned.stderr
        assert stranger in namespaces(), "a namespace that is not ours was removed"
        assert_gone(tmp_path)
    finally:
        delete(stranger)


def assert_gone(out: Path) -> None:
    deadline = time.monotonic() + 60
    while children_of(out) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children_of(out)
    assert not left_by(out)
