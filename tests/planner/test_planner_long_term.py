"""The long-term decision: one instance at a time, towards the best roles, and only where it pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from prfaas_lab.planner.fleet import fleet_of
from prfaas_lab.planner.lengths import law_of
from prfaas_lab.planner.long_term import replan, with_rate
from prfaas_lab.planner.planning import CASE_PROMPT
from prfaas_lab.planner.setting import Setting
from prfaas_lab.spec import load_topology

TOPOLOGY = Path(__file__).parents[2] / "topologies" / "paper-case-study.yaml"
CASE = Setting(
    fleet=fleet_of(load_topology(TOPOLOGY)), prompts=law_of(CASE_PROMPT), output_tokens=1024, mode="exact"
)
COSTS = {"margin": 0.05, "cost_s": 10.0, "period_s": 60.0}


def test_the_case_studys_roles_are_kept() -> None:
    decision = replan(CASE, 3, 19_400, **COSTS)
    assert decision.convert == 0
    assert decision.threshold_tokens == pytest.approx(19_400, rel=0.05)
    assert decision.rate_now == pytest.approx(3.14, abs=0.03)  # thresholds to two digits


@pytest.mark.parametrize(("n_p", "convert"), [(1, +1), (2, +1), (5, -1), (7, -1)])
def test_far_from_the_best_roles_it_goes_one_instance_towards_them(n_p: int, convert: int) -> None:
    decision = replan(CASE, n_p, 19_400, **COSTS)
    assert decision.convert == convert
    assert decision.rate_now < decision.rate_best


def test_shorter_answers_free_decode_instances() -> None:
    decision = replan(replace(CASE, output_tokens=256), 3, 19_400, **COSTS)
    assert decision.convert == +1
    assert "prefill-bound" in decision.reason


def test_a_conversion_that_costs_more_than_it_gains_is_left() -> None:
    shorter = replace(CASE, output_tokens=256)
    assert replan(shorter, 3, 19_400, margin=0.05, cost_s=60.0 * 8, period_s=60.0).convert == 0


def test_a_narrower_way_raises_the_threshold() -> None:
    wide, narrow = (replan(with_rate(CASE, rate), 3, 19_400, **COSTS) for rate in (100e9, 6e9))
    assert narrow.threshold_tokens > 1.2 * wide.threshold_tokens


def test_a_threshold_that_chance_explains_is_left() -> None:
    longer = replace(CASE, prompts=law_of(CASE_PROMPT.model_copy(update={"mu": CASE_PROMPT.mu + 0.2})))
    costs = COSTS | {"cost_s": 600.0}  # no conversion
    law, sample = (replan(longer, 3, 19_400, **costs, requests=n) for n in (None, 100))
    assert law.threshold_tokens > 1.1 * 19_400
    assert sample.threshold_tokens == 19_400
