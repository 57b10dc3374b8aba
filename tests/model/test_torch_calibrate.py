"""A calibrated profile is one that the planner, paced engines and simulation can read."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from prfaas_lab.cli import application
from prfaas_lab.model.profile import find_profile, read_profile


def test_a_calibrated_profile_reads_back_with_the_models_own_sizes(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    result = CliRunner().invoke(
        application(), ["calibrate", "qwen3-next-tiny", "--repeats", "1", "--out", str(file)]
    )
    assert result.exit_code == 0, result.output
    profile, shipped = read_profile(file.read_text(), str(file)), find_profile("qwen3-next-tiny")
    assert profile.kv_bytes(1000) == shipped.kv_bytes(1000)
    assert 0 < profile.prefill_s(64) <= profile.prefill_s(2048)
    assert 0 < profile.step_s(1) <= profile.step_s(8)
