"""Claims about the command line, without running anything big."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import typer.main

from prfaas_lab import __version__
from prfaas_lab.cli import SUMMARIES, application
from prfaas_lab.fabric.ownership import journal_root

ROOT = Path(__file__).parents[2]
GROUP = typer.main.get_command(application())
assert isinstance(GROUP, click.Group) or hasattr(GROUP, "commands")
COMMANDS = sorted(GROUP.commands)


def lab(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prfaas_lab", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def documented_commands() -> list[str]:
    """Every `scripts/lab ...` of the README and the docs."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = {line for page in pages for line in re.findall(r"scripts/lab ([^`#\n]+)", page.read_text())}
    return sorted(line.strip() for line in found)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does(name: str) -> None:
    shown = lab(name, "--help")
    assert shown.returncode == 0
    assert len(shown.stdout.split()) > 30


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_as_wide_as_the_terminal(name: str) -> None:
    """What stands in the source as it is to be shown fits 80 columns; the rest is wrapped there, not here."""
    for paragraph in (GROUP.commands[name].help or "").split("\n\n"):
        lines = paragraph.removeprefix("\b\n").splitlines()
        assert len(lines) == 1 or max(map(len, lines)) <= 78, paragraph


def test_a_plan_fits_80_columns() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "prfaas_lab", "plan", "scenarios/paper-case-study.yaml"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, "COLUMNS": "80"},
    ).stdout  # fmt: skip
    assert "…" not in shown
    assert "prfaas-compute" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_simulation_starts_without_what_only_other_commands_need() -> None:
    code = "import sys, prfaas_lab.cli.simulate as _; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert not loaded & {"aiohttp", "matplotlib", "pyroute2", "scipy", "torch", "uvloop"}
    assert "prfaas_lab.fabric.network" not in run.stdout.split()


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    first = {
        name: command.help.split("\n\n")[0].replace("\n", " ") for name, command in GROUP.commands.items()
    }
    assert first == SUMMARIES


@pytest.mark.parametrize("line", documented_commands())
def test_every_documented_command_is_one_that_exists_with_files_that_exist(line: str) -> None:
    name, *arguments = shlex.split(line)
    command = GROUP.commands[name]
    try:
        context = command.make_context(name, arguments)
    except click.exceptions.Exit:
        return
    for value in context.params.values():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, Path) and each.suffix == ".yaml" and each.name != "my.yaml":
                assert (ROOT / each).exists(), f"{line}: no {each}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["scenario", "nowhere.yaml"], "nowhere.yaml"),
        (["scenario", "topologies/two-datacenters.yaml"], "topologies/two-datacenters.yaml"),
        (["scenario", "scenarios"], "scenarios"),
        (["scenario", "scenarios/smoke.yaml", "--policy", "treshold"], "did you mean threshold?"),
        (["scenario", "scenarios/smoke.yaml", "--threshold", "1Mbit"], "--threshold: '1Mbit' has the unit"),
        (["scenario", "scenarios/smoke.yaml", "--cache", "maybe"], "--cache: 'maybe' is not known here"),
        (["scenario", "scenarios/smoke.yaml", "--compression", "int4"], "(write none, zstd or int8)"),
        (["scenario", "scenarios/surge.yaml", "--compression", "zstd"], "--compression: would compress what"),
        (["validate", "tests/spec/broken/scenario-many.yaml"], "did you mean"),
        (["link-test", "scenarios/smoke.yaml"], "scenarios/smoke.yaml"),
        (["link-tset", "x"], "link-test"),
        (["transfer-bench", "--link", "500,20ms"], "write 100Mbit or 10Gbit"),
        (["transfer-bench", "--shape", "33 x 1MiB"], "no shape is called 33 x 1MiB (have: 1 x 32MiB; "),
        (["scenario", "scenarios/smoke.yaml", "--shaper", "tnu"], "there is no shaper 'tnu'"),
        (["sweep", "scenarios/smoke.yaml", "--grid", "rate=1", "--out", "pyproject.toml"], "--out"),
        (["sweep", "scenarios/smoke.yaml", "--grid", "rate=1", "--address", "x"], "--executor ray"),
        (["compare", "smoke.yaml", "--simulate", "--out", "pyproject.toml"], "results cannot be written"),
        (["compare", "smoke.yaml", "--simulate"], "balanced policy has no share"),
        (["plan", "paper-case-study.yaml", "--heatmap", "nowhere/map.svg"], "nowhere: is no directory"),
        (["plan", "paper-case-study.yaml", "--load", "1"], "--load lies below 1"),
        (["calibrate", "--out", "scenarios"], "scenarios: is a directory"),
        (["calibrate", "--chunk", "100"], "multiple of 64"),
        (["capacity", "smoke.yaml", "--slo", "ttft_p90=0s"], "can never hold"),
        (["validate-sim", "smoke.yaml", "--profile", "nowhere.yaml"], "nowhere.yaml: no such profile"),
    ],
)
def test_what_a_user_gets_wrong_is_told_in_words_with_status_2(arguments: list[str], says: str) -> None:
    finished = lab(*arguments)
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert says in finished.stderr
    assert "Traceback" not in finished.stderr


def test_an_address_that_is_taken_is_told_before_anything_is_brought_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        finished = lab("serve", "smoke.yaml", "--port", str(taken.getsockname()[1]))
    assert (finished.returncode, finished.stdout) == (1, "")
    assert "cannot listen: Address already in use (choose another --port" in finished.stderr


def test_a_file_that_names_what_does_not_exist_is_no_good_one(tmp_path: Path) -> None:
    text = (ROOT / "scenarios" / "surge.yaml").read_text()
    topology = (ROOT / "topologies" / "paper-case-study.yaml").read_text()
    (tmp_path / "topology.yaml").write_text(topology.replace("8xH200", "8xH201"))
    text = re.sub(r"^topology: .*$", "topology: topology.yaml", text, flags=re.MULTILINE)
    (tmp_path / "mine.yaml").write_text(text.replace("name: prfaas,", "name: prfass,"))
    finished = lab("validate", str(tmp_path / "mine.yaml"))
    assert finished.returncode == 2, finished.stdout
    assert "mine.yaml: policy.name: there is no policy 'prfass' (did you mean prfaas?)" in finished.stderr
    assert "mine.yaml: datacenters.prfaas-h200.hardware" in finished.stderr


def test_a_capacity_that_no_rate_exceeds_is_told_as_a_lower_bound() -> None:
    finished = lab("capacity", "scenarios/smoke.yaml", "--slo", "ttft_p90=1s")
    assert "capacity: at least 2048 req/s" in finished.stdout
    assert "give it more requests" in finished.stdout


@pytest.mark.parametrize("command", ["scenario", "simulate"])
def test_results_that_cannot_be_written_are_refused_in_words(command: str) -> None:
    finished = lab(command, "scenarios/smoke.yaml", "--out", "pyproject.toml")
    assert finished.returncode == 1
    assert "pyproject.toml: results cannot be written here" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_simulation_whose_requests_failed_says_so_and_fails(tmp_path: Path) -> None:
    text = (ROOT / "scenarios" / "smoke.yaml").read_text().replace("../topologies", f"{ROOT}/topologies")
    (tmp_path / "cut.yaml").write_text(text + "events: [{at: 0s, link: wan, outage: 60s}]\n")
    arguments = ("--policy", "remote-all", "--out", str(tmp_path / "run"))
    finished = lab("simulate", str(tmp_path / "cut.yaml"), *arguments)
    assert finished.returncode == 1
    assert "no live PrfaaS engine" in finished.stdout
    assert "12 of 12 requests failed" in finished.stderr


@pytest.mark.parametrize("command", ["scenario", "simulate", "compare"])
def test_a_policy_that_lacks_an_option_is_refused_before_anything_runs(command: str, tmp_path: Path) -> None:
    option = "--policies" if command == "compare" else "--policy"
    finished = lab(command, "scenarios/smoke.yaml", option, "balanced", "--out", str(tmp_path / "run"))
    assert finished.returncode == 2
    assert "policy.share: the balanced policy has no share to offload (set it" in finished.stderr
    assert not list(tmp_path.rglob("*.*")), "nothing ran"


def test_a_simulation_is_compared_with_an_emulation_of_the_same_scenario(tmp_path: Path) -> None:
    def refused(run: Path) -> str:
        finished = lab("validate-sim", "smoke.yaml", "--emulated", str(run))
        assert finished.returncode == 1
        return finished.stderr

    assert "holds no run" in refused(tmp_path)
    run = tmp_path / "run"
    assert lab("simulate", "smoke.yaml", "--seed", "4", "--out", str(run)).returncode == 0
    assert "is no emulation (mode: simulate)" in refused(run)
    calibrated = lab("calibrate", "--run", str(run))
    assert (calibrated.returncode, "was simulated" in calibrated.stderr) == (2, True)
    summary = json.loads((run / "summary.json").read_text()) | {"mode": "emulate"}
    (run / "summary.json").write_text(json.dumps(summary))
    assert "another scenario than scenarios/smoke.yaml (seed differ)" in refused(run)
    same = lab(
        "validate-sim", str(run / "scenario.yaml"), "--emulated", str(run), "--json", "--out", str(run)
    )
    assert {row["error"] for row in json.loads(same.stdout)} == {0.0}
    faster = tmp_path / "faster"
    shutil.copytree(run, faster)
    (faster / "summary.json").write_text(json.dumps(summary | {"median_ttft_ms": 0.0}))
    emulated = ("--emulated", str(run), "--emulated", str(faster))
    both = lab("validate-sim", str(run / "scenario.yaml"), *emulated, "--json", "--out", str(run))
    assert both.returncode == 0
    median = next(row for row in json.loads(both.stdout) if row["measure"] == "TTFT p50, ms")
    assert (median["least"], median["most"]) == (0.0, summary["median_ttft_ms"])
    assert median["error"] == pytest.approx(1.0)


def test_a_run_on_another_clock_says_what_it_is_of_the_real_one(tmp_path: Path) -> None:
    finished = lab("simulate", "surge.yaml", "--out", str(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["scale"], summary["time_scale"]) == (0.00035, 0.1)
    real = 0.1 * summary["request_throughput"]
    assert f"in real time  {real:.3g} requests/s" in finished.stdout


@pytest.mark.emulation
@pytest.mark.parametrize("command", [["link-test", "topologies/three-regions.yaml"], ["doctor"]])
def test_a_measurement_that_is_ended_leaves_nothing(command: list[str]) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "prfaas_lab", *command], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not (made := list(journal_root().glob("*-test-*/journal.jsonl"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.terminate()
    assert running.wait(timeout=300) == 143
    assert not any(path.exists() for path in made)


def test_a_simulation_can_go_without_its_prefix_cache(tmp_path: Path) -> None:
    finished = lab("simulate", "scenarios/multi-turn.yaml", "--cache", "off", "--out", str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["total_cached_tokens"] == 0


def test_a_shipped_scenario_is_found_by_its_bare_name() -> None:
    finished = lab("scenario", "smoke.yaml", "--policy", "nothing-like-it")
    assert "there is no policy" in finished.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look anywhere")
def test_a_file_where_nobody_may_look_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    finished = lab("simulate", str(tmp_path / "closed" / "mine.yaml"))
    assert (finished.returncode, "Permission denied" in finished.stderr) == (2, True), finished.stderr


def test_the_version_needs_no_command() -> None:
    shown = lab("--version")
    assert (shown.returncode, shown.stdout.strip()) == (0, __version__)


def test_only_the_command_that_is_asked_for_is_imported() -> None:
    code = """
import sys
sys.argv = ["prfaas-lab", "clean", "--help"]
from prfaas_lab.cli import main
try:
    main()
finally:
    assert not {"scipy", "aiohttp", "torch", "prfaas_lab.planner"} & set(sys.modules)
"""
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    pipe = f"{shlex.quote(sys.executable)} -m prfaas_lab schema scenario | head -n 1; exit ${{PIPESTATUS[0]}}"
    finished = subprocess.run(
        ["bash", "-c", pipe], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.stdout.strip() == "{"
    assert "Traceback" not in finished.stderr
