"""Claims about the profile that is read out of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import yaml
from made_up import PROFILE

from prfaas_lab.errors import LabError
from prfaas_lab.lab.run_profile import profile_of_runs
from prfaas_lab.lab.simulate import Simulation, simulate
from prfaas_lab.model.profile import find_profile, read_profile
from prfaas_lab.spec.load import load_scenario

SCENARIOS = Path(__file__).parents[2] / "scenarios"


SHARED = PROFILE + "machine: {source: a test, cores: 1.5, order: 3ms, connect: 12ms, restore: 4ms}\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its engines shared a core and a half, and waited for each other a good deal."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "profile.yaml").write_text(SHARED)
    profile = folder / "profile.yaml"
    simulate(load_scenario(SCENARIOS / "bursty.yaml"), Simulation(out=folder / "run", profile=profile))
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its engines took exactly what the shipped profile says."""
    folder = tmp_path_factory.mktemp("run")
    simulate(load_scenario(SCENARIOS / "bursty.yaml"), Simulation(out=folder))
    return folder


def test_the_profile_of_a_run_is_the_one_that_its_engines_kept(run: Path) -> None:
    shipped, measured = find_profile("qwen3-next-tiny"), profile_of_runs([run], 1.6)
    for tokens in (128, 400, 1000):
        assert measured.prefill_s(tokens) == pytest.approx(shipped.prefill_s(tokens), rel=0.05)
        assert measured.kv_bytes(tokens) == pytest.approx(shipped.kv_bytes(tokens))
    for batch in (1, 2, 3):
        assert measured.decoding().step.at(batch) == pytest.approx(shipped.decoding().step.at(batch), rel=0.1)
    assert measured.bs_max == 8


def test_what_engines_waited_for_each_other_is_no_part_of_the_profile(shared: Path) -> None:
    kept, measured = read_profile(SHARED, "a test"), profile_of_runs([shared], 1.5)
    for tokens in (100, 400, 1000):
        assert measured.prefill_s(tokens) == pytest.approx(kept.prefill_s(tokens), rel=0.03)
    for batch in (1, 3):
        assert measured.step_s(batch) == pytest.approx(kept.step_s(batch), rel=0.1)
    assert measured.machine is not None
    assert measured.machine.cores == 1.5
    assert measured.machine.order == pytest.approx(3e-3, rel=0.1)
    assert measured.machine.connect == pytest.approx(12e-3, rel=0.1)
    assert measured.machine.restore == pytest.approx(4e-3, rel=0.05)


def test_several_runs_make_one_profile_between_theirs(shared: Path, run: Path) -> None:
    one, other = profile_of_runs([shared], 1.5), profile_of_runs([run], 1.5)
    both = profile_of_runs([shared, run], 1.5)
    for tokens in (100, 400, 1000):
        low, high = sorted((one.prefill_s(tokens), other.prefill_s(tokens)))
        assert 0.98 * low <= both.prefill_s(tokens) <= 1.02 * high
    assert one.machine is not None
    assert other.machine is not None
    assert both.machine is not None
    low, high = sorted((one.machine.restore, other.machine.restore))
    assert low < both.machine.restore < high


def test_runs_of_several_models_make_no_profile(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "requests.jsonl", tmp_path)
    (tmp_path / "scenario.yaml").write_text(
        (run / "scenario.yaml").read_text().replace("qwen3-next-tiny", "kimi-linear-tiny")
    )
    with pytest.raises(LabError, match="and another run qwen3-next-tiny"):
        profile_of_runs([run, tmp_path], 1.8)


def test_on_more_cores_the_same_run_tells_of_slower_engines(shared: Path) -> None:
    """What was not for want of a core was the engine's own."""
    assert profile_of_runs([shared], 3).prefill_s(1000) > 1.05 * profile_of_runs([shared], 1.5).prefill_s(
        1000
    )


def test_the_profile_of_a_run_simulates_it_as_it_was(shared: Path, tmp_path: Path) -> None:
    text = yaml.safe_dump(profile_of_runs([shared], 1.5).model_dump(mode="json"))
    (tmp_path / "own.yaml").write_text(text)
    again = simulate(load_scenario(SCENARIOS / "bursty.yaml"), Simulation(profile=tmp_path / "own.yaml"))
    first = msgspec.json.decode((shared / "summary.json").read_bytes())
    for measure in ("mean_ttft_ms", "median_ttft_ms", "p90_ttft_ms", "mean_tpot_ms"):
        assert again[measure] == pytest.approx(first[measure], rel=0.05)


def test_the_curve_goes_through_the_mean_of_prefills_that_vary(run: Path, tmp_path: Path) -> None:
    """Not below it, as it would if errors were shares of what was measured."""
    rows = [msgspec.json.decode(line) for line in (run / "requests.jsonl").read_bytes().splitlines()]
    for number, row in enumerate(rows):
        took_s = row["prefill_finished_s"] - row["prefill_started_s"]
        row["prefill_finished_s"] = row["prefill_started_s"] + took_s * (0.5 if number % 2 else 1.5)
    (tmp_path / "requests.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    shutil.copy(run / "scenario.yaml", tmp_path)
    profile = profile_of_runs([tmp_path], 99)
    reckoned = sum(profile.prefill_s(row["prompt_tokens"]) for row in rows)
    took = sum(row["prefill_finished_s"] - row["prefill_started_s"] for row in rows)
    assert reckoned == pytest.approx(took, rel=0.05)


def test_a_paced_run_and_no_run_are_told_so(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no such file"):
        profile_of_runs([tmp_path], 2)
    simulate(load_scenario(SCENARIOS / "surge.yaml"), Simulation(out=tmp_path))
    with pytest.raises(LabError, match="paced"):
        profile_of_runs([tmp_path], 2)


def test_answers_of_one_token_say_nothing_of_steps(run: Path, tmp_path: Path) -> None:
    rows = [msgspec.json.decode(line) for line in (run / "requests.jsonl").read_bytes().splitlines()]
    short = [
        row | {"output_tokens": 1, "last_token_s": row["first_token_s"], "tpot_ms": None} for row in rows
    ]
    (tmp_path / "requests.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, short)))
    shutil.copy(run / "scenario.yaml", tmp_path)
    with pytest.raises(LabError, match="0 answers had several tokens"):
        profile_of_runs([tmp_path], 2)


def test_who_was_served_from_a_cache_still_decodes_beside_others(run: Path, tmp_path: Path) -> None:
    rows = [msgspec.json.decode(line) for line in (run / "requests.jsonl").read_bytes().splitlines()]
    cached = [row | {"cached_tokens": 128 * (number % 2)} for number, row in enumerate(rows)]
    (tmp_path / "requests.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, cached)))
    shutil.copy(run / "scenario.yaml", tmp_path)
    assert (
        profile_of_runs([tmp_path], 1.6).decoding().step.knots
        == profile_of_runs([run], 1.6).decoding().step.knots
    )
