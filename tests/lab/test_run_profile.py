"""Claims about the profile that is read out of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from prfaas_lab.errors import LabError
from prfaas_lab.lab.run_profile import profile_of_run
from prfaas_lab.lab.simulate import Simulation, simulate
from prfaas_lab.model.profile import find_profile
from prfaas_lab.spec.load import load_scenario

SCENARIOS = Path(__file__).parents[2] / "scenarios"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its engines took exactly what the shipped profile says."""
    folder = tmp_path_factory.mktemp("run")
    simulate(load_scenario(SCENARIOS / "bursty.yaml"), Simulation(out=folder))
    return folder


def test_the_profile_of_a_run_is_the_one_that_its_engines_kept(run: Path) -> None:
    shipped, measured = find_profile("qwen3-next-tiny"), profile_of_run(run)
    for tokens in (128, 400, 1000):
        assert measured.prefill_s(tokens) == pytest.approx(shipped.prefill_s(tokens), rel=0.05)
        assert measured.kv_bytes(tokens) == pytest.approx(shipped.kv_bytes(tokens))
    for batch in (1, 2, 3):
        assert measured.decoding().step.at(batch) == pytest.approx(shipped.decoding().step.at(batch), rel=0.1)
    assert measured.bs_max == 8


def test_a_paced_run_and_no_run_are_told_so(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no such file"):
        profile_of_run(tmp_path)
    simulate(load_scenario(SCENARIOS / "surge.yaml"), Simulation(out=tmp_path))
    with pytest.raises(LabError, match="paced"):
        profile_of_run(tmp_path)


def test_answers_of_one_token_say_nothing_of_steps(run: Path, tmp_path: Path) -> None:
    rows = [msgspec.json.decode(line) for line in (run / "requests.jsonl").read_bytes().splitlines()]
    short = [
        row | {"output_tokens": 1, "last_token_s": row["first_token_s"], "tpot_ms": None} for row in rows
    ]
    (tmp_path / "requests.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, short)))
    shutil.copy(run / "scenario.yaml", tmp_path)
    with pytest.raises(LabError, match="0 answers had several tokens"):
        profile_of_run(tmp_path)


def test_who_was_served_from_a_cache_still_decodes_beside_others(run: Path, tmp_path: Path) -> None:
    rows = [msgspec.json.decode(line) for line in (run / "requests.jsonl").read_bytes().splitlines()]
    cached = [row | {"cached_tokens": 128 * (number % 2)} for number, row in enumerate(rows)]
    (tmp_path / "requests.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, cached)))
    shutil.copy(run / "scenario.yaml", tmp_path)
    assert profile_of_run(tmp_path).decoding().step.knots == profile_of_run(run).decoding().step.knots
