"""Claims about what `compare` deploys for a policy, and how it sums up seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from prfaas_lab.errors import LabError
from prfaas_lab.lab.arrange import arrange
from prfaas_lab.lab.compare import Interval, compare
from prfaas_lab.lab.deployment import Options
from prfaas_lab.spec import load_scenario
from prfaas_lab.spec.scenario import Fixed, OnOff, Resolved

SCENARIO = Path(__file__).parents[2] / "scenarios" / "paper-case-study.yaml"


@pytest.fixture(scope="module")
def case() -> Resolved:
    return load_scenario(SCENARIO)


@pytest.mark.parametrize(
    ("policy", "prfaas", "local", "lambda_max"),
    [
        ("prfaas", 4, (3, 5), 3.14),
        ("homogeneous", None, (9, 3), 2.03),
        ("naive", 4, (0, 8), 2.37),
        ("balanced", 4, (4, 4), 3.125),
    ],
)
def test_each_policy_gets_the_deployment_that_the_paper_gives_it(
    case: Resolved, policy: str, prfaas: int | None, local: tuple[int, int], lambda_max: float
) -> None:
    arranged = arrange(case, policy)
    sites = arranged.resolved.topology.datacenters
    engines = sites["local-h20"].engines
    assert (engines.prefill, engines.decode) == local
    remote = sites.get("prfaas-h200")
    assert (remote.engines.prefill if remote else None) == prfaas
    assert set(arranged.resolved.topology.links) == ({"vpc"} if prfaas else set())
    assert arranged.predicted is not None
    assert arranged.predicted.lambda_max == pytest.approx(lambda_max, abs=0.01)
    assert arranged.resolved.scenario.policy.name == policy
    assert arranged.resolved.scenario.workload == case.scenario.workload


def test_the_threshold_and_the_share_come_from_the_planner(case: Resolved) -> None:
    assert arrange(case, "prfaas").resolved.scenario.policy.threshold == pytest.approx(19_400, rel=0.01)
    assert arrange(case, "balanced").resolved.scenario.policy.share == pytest.approx(0.72, abs=0.02)


def test_a_policy_the_planner_does_not_know_runs_on_the_same_roles_without_a_prediction(
    case: Resolved,
) -> None:
    ours, theirs = arrange(case, "prfaas"), arrange(case, "earliest-finish")
    assert theirs.predicted is None
    assert theirs.resolved.topology == ours.resolved.topology


def test_an_interval_is_students_and_holds_the_mean() -> None:
    interval = Interval.of([3.0, 3.1, 3.2])
    assert interval.mean == pytest.approx(3.1)
    assert interval.low is not None
    assert interval.low == pytest.approx(3.1 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)
    assert Interval.of([3.0]).low is None


def test_sessions_are_planned_by_their_whole_prompts() -> None:
    """Each turn's prompt is all that was said: far longer than what it adds."""
    chats = load_scenario(SCENARIO.with_name("chats-case-study.yaml"))
    predicted = arrange(chats, "prfaas").predicted
    assert predicted is not None
    added = chats.scenario.model_copy(
        update={"workload": chats.scenario.workload.model_copy(update={"sessions": None})}
    )
    short = arrange(chats.model_copy(update={"scenario": added}), "prfaas").predicted
    assert short is not None
    assert predicted.lambda_max < short.lambda_max / 2


def test_a_trace_is_planned_by_its_requests() -> None:
    arranged = arrange(load_scenario(SCENARIO.with_name("mooncake.yaml")), "homogeneous")
    assert arranged.predicted is not None
    assert arranged.resolved.topology.prfaas == ()


@pytest.mark.parametrize(("name", "saturated"), [("paper-case-study.yaml", True), ("surge.yaml", False)])
def test_a_prediction_of_the_most_is_held_against_runs_that_were_offered_more(
    name: str, saturated: bool, tmp_path: Path
) -> None:
    """What ends of a light load says nothing of what a deployment could serve."""
    resolved = load_scenario(SCENARIO.with_name(name))
    short = resolved.scenario.model_copy(update={"duration": 120.0})
    comparison = compare(
        resolved.model_copy(update={"scenario": short}), ["threshold"], seeds=1,
        options=Options(out=tmp_path), simulated=True, tell=lambda run: None,
    )  # fmt: skip
    row = comparison.rows[0]
    assert row.predicted is not None
    assert row.saturated is saturated
    assert (row.error is not None) is saturated


def test_a_steady_state_in_which_requests_only_end_is_told_in_words(tmp_path: Path) -> None:
    """All of a burst came before it."""
    smoke = load_scenario(SCENARIO.with_name("smoke.yaml"))
    burst = {
        "requests": None,
        "arrivals": OnOff(kind="onoff", rate=4.0, on=1.0, off=60.0),
        "output": Fixed(kind="fixed", tokens=1000),
    }
    workload = smoke.scenario.workload.model_copy(update=burst)
    changed = {"workload": workload, "warm_up": 2.0, "duration": 20.0}
    resolved = smoke.model_copy(update={"scenario": smoke.scenario.model_copy(update=changed)})
    with pytest.raises(LabError, match="no request was routed in the steady state"):
        compare(
            resolved, ["local-only"], seeds=1, options=Options(out=tmp_path), simulated=True,
            tell=lambda run: None,
        )  # fmt: skip
