from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from prfaas_lab.cli.plan import plan as plan_command
from prfaas_lab.errors import LabError, SpecError
from prfaas_lab.lab.arrange import arrange
from prfaas_lab.planner import lengths
from prfaas_lab.planner.planning import plan
from prfaas_lab.spec import load_scenario

SCENARIOS = Path(__file__).parents[2] / "scenarios"
CASE = Path(__file__).parents[2] / "topologies" / "paper-case-study.yaml"
FIELDS = {
    "lambda_max", "threshold_tokens", "n_prfaas", "n_p", "n_d", "theta_prfaas", "theta_pd_p", "theta_pd_d",
    "p", "l_long", "l_short", "egress_bps", "bottleneck", "mean_ttft_s", "p90_ttft_s",
}  # fmt: skip
app = typer.Typer()
app.command()(plan_command)


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.output


def test_json_has_every_policy_in_both_modes():
    found = json.loads(_run(CASE, "--json"))
    for mode in ("deployments", "exact"):
        assert list(found[mode]) == ["prfaas", "homogeneous", "naive", "balanced"]
        for one in found[mode].values():
            assert set(one) >= FIELDS
    assert found["workload"]["assumed"] is True
    assert found["bound"]["shortfall"]["prfaas"] < 0.002
    assert found["ratios"]["exact"]["prfaas"] == pytest.approx(1.54, abs=0.01)


def test_the_paper_s_tables_come_as_json_in_both_modes():
    found = json.loads(_run("--paper", "--json"))
    assert set(found["table6"]) == set(found["ablation"]) == {"paper", "exact"}
    assert all({"paper", "ours", "difference"} <= set(row) for row in found["table3"] + found["table5"])
    assert found["deployments"]["prfaas"]["n_p"] == 3


def test_the_screen_shows_the_plan_the_limit_table_6_and_the_map():
    shown = _run(CASE)
    for text in ("4/3/5", "19,400", "Limit over all routings", "Table 6 of the paper", "*", "derived"):
        assert text in shown
    assert "Table 3" in _run("--paper")


def test_against_chooses_the_baselines():
    found = json.loads(_run(CASE, "--json", "--against", "naive"))
    assert list(found["deployments"]) == ["prfaas", "naive"]


def test_extensions_are_off_unless_asked_for():
    warm = json.loads(
        _run(CASE, "--json", "--against", "", "--hit-rate", "0.5", "--rtt", "20ms", "--load", "0.7")
    )
    cold = json.loads(_run(CASE, "--json", "--against", ""))
    assert set(warm["extensions"]) == {"hits", "network", "queueing", "slo"}
    assert set(cold["extensions"]) == {"slo"}
    assert warm["exact"]["prfaas"]["lambda_max"] > cold["exact"]["prfaas"]["lambda_max"]


def test_the_map_is_saved_as_svg(tmp_path: Path):
    _run(CASE, "--against", "", "--heatmap", tmp_path / "map.svg")
    assert "<svg" in (tmp_path / "map.svg").read_text()
    result = CliRunner().invoke(app, [str(CASE), "--heatmap", str(tmp_path / "map.gif")])
    assert isinstance(result.exception, LabError)
    assert "svg" in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [(), ("--paper", CASE), (CASE, "--against", "best"), (CASE, "--price", "H200"), (CASE, "--tpot", "25")],
)
def test_misuse_is_told_with_exit_code_2(arguments: tuple[str, ...]):
    assert CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code == 2


def test_a_topology_without_hardware_says_which_datacenters_lack_it(tmp_path: Path):
    bare = tmp_path / "bare.yaml"
    bare.write_text(CASE.read_text().replace("    hardware: 8xH200\n", "").replace("8xH20\n", "8xH2O\n"))
    with pytest.raises(SpecError) as caught:
        plan(bare)
    assert len(caught.value.problems) == 2
    assert "datacenters.prfaas-h200.hardware: unset" in str(caught.value)
    assert "did you mean '8xH20'" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_scenario_is_planned_with_its_own_workload(tmp_path: Path):
    (tmp_path / "scenario.yaml").write_text(
        f"""
name: short-prompts
topology: {CASE}
workload:
  arrivals: {{kind: poisson, rate: 1/s}}
  prompt: {{kind: fixed, tokens: 4Ki}}
  output: {{kind: fixed, tokens: 256}}
"""
    )
    report = plan(tmp_path / "scenario.yaml")
    assert report.workload_assumed is False
    assert report.deployments["prfaas"].lambda_max == pytest.approx(report.exact["prfaas"].lambda_max)
    assert report.deployments["naive"].lambda_max > 4


def test_sessions_are_planned_by_their_whole_prompts() -> None:
    report = plan(SCENARIOS / "chats-case-study.yaml")
    assert report.prompt is not None
    assert lengths.mean(report.prompts) > 2 * lengths.mean(lengths.law_of(report.prompt))
    assert report.as_dict()["workload"]["mean_prompt_tokens"] == lengths.mean(report.prompts)


def test_a_trace_is_planned_by_its_own_lengths() -> None:
    workload = plan(SCENARIOS / "mooncake.yaml").as_dict()["workload"]
    assert workload["prompt"] is None
    assert 1_000 < workload["mean_prompt_tokens"] < 131_072


def test_plan_and_compare_see_the_same_lengths() -> None:
    resolved = load_scenario(SCENARIOS / "chats-case-study.yaml")
    predicted = arrange(resolved, "prfaas").predicted
    assert predicted == plan(resolved).exact["prfaas"]
