"""A profile that `calibrate` wrote, followed to where it is used: the plan, paced engines, real ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prfaas_lab.cli import application
from prfaas_lab.lab.pacing import costs_of, pacing_of
from prfaas_lab.lab.scheduler import convertible
from prfaas_lab.model.profile import read_profile
from prfaas_lab.spec import load_scenario
from prfaas_lab.spec.scenario import Resolved

DOCS = Path(__file__).parents[2] / "docs" / "case-study.md"


def written(folder: Path, **replaced: str) -> Resolved:
    """The page's own scenario, with a few words replaced."""
    text = next(
        block
        for block in re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
        if "mine.yaml" in block
    )
    for old, new in replaced.items():
        text = text.replace(old, new)
    (folder / "calibrated.yaml").write_text(text)
    return load_scenario(folder / "calibrated.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `prfaas-lab calibrate --out mine.yaml` was run."""
    folder = tmp_path_factory.mktemp("calibrated")
    command = ["calibrate", "qwen3-next-tiny", "--repeats", "1", "--out", str(folder / "mine.yaml")]
    result = CliRunner().invoke(application(), command)
    assert result.exit_code == 0, result.output
    return folder


def test_paced_engines_keep_to_the_measured_profile(folder: Path) -> None:
    resolved = written(folder)
    measured = read_profile((folder / "mine.yaml").read_text(), "mine.yaml")
    pacing = pacing_of(resolved)
    assert pacing is not None
    assert pacing.of("home").profile == pacing.of("remote").profile == measured
    state_bytes = round(measured.kv_bytes(0))
    assert (pacing.model.state_bytes, pacing.model.token_bytes) == (
        state_bytes,
        round(measured.kv_bytes(1)) - state_bytes,
    )


def test_a_paced_run_takes_the_measured_time(folder: Path) -> None:
    written(folder)
    command = ["simulate", str(folder / "calibrated.yaml"), "--out", str(folder / "run")]
    result = CliRunner().invoke(application(), command)
    assert result.exit_code == 0, result.output
    measured = read_profile((folder / "mine.yaml").read_text(), "mine.yaml")
    rows = [json.loads(line) for line in (folder / "run" / "requests.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        assert row["handover"]["prefill_ms"] / 1e3 == pytest.approx(
            measured.prefill_s(row["prompt_tokens"]), abs=1e-6
        )


def test_the_planner_plans_for_it(folder: Path) -> None:
    written(folder)
    result = CliRunner().invoke(application(), ["plan", str(folder / "calibrated.yaml"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["exact"]["prfaas"]["lambda_max"] > 0


def test_real_engines_of_that_model_may_convert_and_others_not(folder: Path) -> None:
    paced, real = written(folder), written(folder, **{"executor: paced": "executor: torch"})
    assert convertible(paced, "home")
    assert convertible(real, "home")
    assert not convertible(real, "remote")
    unknown = written(folder, **{"executor: paced": "executor: torch", "mine.yaml": "8xH20"})
    assert costs_of(unknown) is None
    assert not convertible(unknown, "home")
