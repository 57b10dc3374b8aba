from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_made_up import settings_of

from prfaas_lab.errors import LabError
from prfaas_lab.planner import lengths, throughput
from prfaas_lab.planner.bound import best_rate
from prfaas_lab.planner.classes import Classes
from prfaas_lab.planner.fleet import Cap, Fleet
from prfaas_lab.planner.grid import grid
from prfaas_lab.planner.paper import case_study
from prfaas_lab.planner.roles import role_choices
from prfaas_lab.planner.search import deploy, deploy_prfaas
from prfaas_lab.planner.setting import Extensions, Network, PrefixHits, Prices, Queueing, Setting, Slo

quick = settings(max_examples=15)


def _with_link(setting: Setting, rate_bps: float) -> Setting:
    caps = tuple(replace(cap, rate_bps=rate_bps) for cap in setting.fleet.caps)
    return replace(setting, fleet=replace(setting.fleet, caps=caps))


def _with_instances(setting: Setting, prfaas: int, local: int) -> Setting:
    fleet = setting.fleet
    return replace(
        setting,
        fleet=replace(
            fleet,
            prfaas=(replace(fleet.prfaas[0], instances=prfaas),),
            local=(replace(fleet.local[0], instances=local),),
        ),
    )


@quick
@given(settings_of(), st.floats(1.0, 10.0))
def test_a_faster_link_never_lowers_lambda_max(setting: Setting, factor: float):
    faster = _with_link(setting, setting.fleet.caps[0].rate_bps * factor)
    assert deploy_prfaas(faster).lambda_max >= deploy_prfaas(setting).lambda_max * (1 - 1e-9)


@quick
@given(settings_of(), st.integers(0, 2), st.integers(0, 2))
def test_more_instances_never_lower_lambda_max(setting: Setting, prfaas: int, local: int):
    grown = _with_instances(setting, setting.fleet.n_prfaas + prfaas, setting.fleet.n_local + local)
    assert deploy_prfaas(grown).lambda_max >= deploy_prfaas(setting).lambda_max * (1 - 1e-9)


@quick
@given(settings_of())
def test_t_at_the_mean_never_promises_less_than_the_mean_of_t(setting: Setting):
    paper, exact = deploy(replace(setting, mode="paper")), deploy(setting)
    for name, one in exact.items():
        assert paper[name].lambda_max >= one.lambda_max * (1 - 1e-9)


@quick
@given(settings_of())
def test_no_policy_exceeds_the_bound(setting: Setting):
    found = deploy(setting, ("prfaas", "naive", "balanced"))
    cut = found["prfaas"].threshold_tokens
    assert cut is not None
    bound = best_rate(setting, thresholds=[cut])
    for one in found.values():
        assert one.lambda_max <= bound.lambda_max * (1 + 1e-6)


@quick
@given(settings_of())
def test_at_the_best_threshold_equation_7_turns(setting: Setting):
    setting = replace(setting, mode="exact")
    best = deploy_prfaas(setting)
    assert best.threshold_tokens is not None
    tried = lengths.thresholds(setting.lengths)
    index = int(np.searchsorted(tried, best.threshold_tokens))
    around = tried[max(0, index - 1) : index + 2]
    table = grid(setting, around, [{"here": best.n_p}])
    imbalance = throughput.threshold_imbalance(table.prfaas, table.pd_p[0], table.classes.p)
    if 0 < index < tried.size - 1 and best.lambda_max < best.theta_pd_d * (1 - 1e-9):
        assert imbalance[0] <= 1e-9
        assert imbalance[-1] >= -1e-9


@quick
@given(settings_of())
def test_the_grid_s_best_is_the_best_of_every_cell(setting: Setting):
    table = grid(setting, lengths.thresholds(setting.lengths), role_choices(setting.fleet))
    assert deploy_prfaas(setting).lambda_max == pytest.approx(float(table.rate.max()))


@quick
@given(settings_of(), st.floats(0, 1), st.floats(0, 0.9))
def test_prefix_hits_never_lower_the_limit(setting: Setting, hit_rate: float, reused: float):
    warm = replace(setting, extensions=Extensions(hits=PrefixHits(hit_rate=hit_rate, reused=reused)))
    # Both limits are cut into slices at different places: hence the half percent.
    assert best_rate(warm).lambda_max >= best_rate(setting).lambda_max * 0.995


def test_classes_in_both_modes_agree_where_the_curve_is_straight():
    setting = case_study()
    profile = setting.fleet.prfaas[0].profile
    cuts = np.asarray([40_000.0, 60_000.0])  # above the last inner knot the long class sees one line
    paper = Classes(setting.lengths, "paper", cuts).long_mean(profile.prefill)
    exact = Classes(setting.lengths, "exact", cuts).long_mean(profile.prefill)
    assert exact.tolist() == pytest.approx(paper.tolist())


def test_a_threshold_is_the_optimal_rule_while_compute_binds():
    setting = case_study("exact")
    best = deploy_prfaas(setting)
    bound = best_rate(setting, thresholds=[best.threshold_tokens or 0])
    assert bound.is_threshold
    assert bound.shortfall(best.lambda_max) < 0.002


def test_a_binding_link_can_make_a_threshold_worse_than_the_best_routing():
    setting = _with_link(case_study("exact"), 3e9)
    local, far = setting.fleet.local[0], setting.fleet.prfaas[0]
    # Bytes that grow faster than the seconds they save: amid the lengths a byte saves most.
    # Validated anew: a model_copy would carry what the old curve has worked out about its own knots.
    knots = ((1024, 2**26), (8192, 2**27), (32768, 2**29), (131072, 2**34))
    curve = far.profile.kvcache
    heavy = type(curve).model_validate({**curve.model_dump(), "knots": knots})
    dense = far.profile.model_copy(update={"kvcache": heavy})
    fleet = replace(setting.fleet, prfaas=(replace(far, profile=dense),), local=(local,))
    setting = replace(setting, fleet=fleet)
    best = deploy_prfaas(setting)
    bound = best_rate(setting, thresholds=[best.threshold_tokens or 0])
    assert "prfaas-link" in best.bottleneck
    assert not bound.is_threshold
    assert bound.shortfall(best.lambda_max) > 0.03


def test_a_shrinking_link_raises_the_threshold():
    cuts = [
        deploy_prfaas(_with_link(case_study("exact"), rate)).threshold_tokens for rate in (20e9, 8e9, 3e9)
    ]
    assert cuts == sorted(cuts)
    assert cuts[0] < cuts[-1]


def test_two_sites_that_split_one_deploy_as_the_one():
    one = case_study("exact")
    far, here = one.fleet.prfaas[0], one.fleet.local[0]
    names = [("far-a", "here-a"), ("far-a", "here-b"), ("far-b", "here-a"), ("far-b", "here-b")]
    fleet = Fleet(
        prfaas=tuple(replace(far, name=name, instances=2) for name in ("far-a", "far-b")),
        local=tuple(replace(here, name=name, instances=4) for name in ("here-a", "here-b")),
        caps=tuple(Cap(name=f"{a}-{b}", rate_bps=50e9, pairs=frozenset({(a, b)})) for a, b in names),
    )
    split, whole = deploy_prfaas(replace(one, fleet=fleet)), deploy_prfaas(one)
    assert (split.n_p, split.n_d, split.threshold_tokens) == (whole.n_p, whole.n_d, whole.threshold_tokens)
    assert split.lambda_max == pytest.approx(whole.lambda_max, rel=1e-6)


def _with_reach(reached: int) -> Setting:
    """The case study with its local site in two, of which the link reaches so many instances."""
    one = case_study("exact")
    here = one.fleet.local[0]
    local = (replace(here, name="a", instances=reached), replace(here, name="b", instances=8 - reached))
    caps = (
        Cap(name="wan", rate_bps=100e9, pairs=frozenset({("prfaas-h200", "a")})),
        Cap(name="none", rate_bps=0.0, pairs=frozenset({("prfaas-h200", "b")})),
    )
    return replace(one, fleet=Fleet(prfaas=one.fleet.prfaas, local=local, caps=caps))


def test_instances_decode_where_the_link_reaches():
    found = deploy_prfaas(_with_reach(2))
    assert found.lambda_max == pytest.approx(deploy_prfaas(case_study("exact")).lambda_max, rel=1e-6)
    assert found.roles["a"] == (0, 2)


def test_a_site_beyond_the_link_s_reach_costs_throughput():
    setting = _with_reach(1)
    found = deploy_prfaas(setting)
    assert found.lambda_max < deploy_prfaas(_with_reach(2)).lambda_max
    assert found.lambda_max <= best_rate(setting, thresholds=[found.threshold_tokens or 0]).lambda_max * (
        1 + 1e-6
    )
    assert found.bottleneck == "routes"


def test_distance_costs_time_and_windows_cost_throughput():
    setting = case_study("exact")
    near = deploy_prfaas(setting)
    far = deploy_prfaas(replace(setting, extensions=Extensions(network=Network(rtt_s=0.2, handshake_rtts=1))))
    assert far.lambda_max == near.lambda_max
    assert far.mean_ttft_s == pytest.approx(near.mean_ttft_s + near.p * 0.3)
    few = Network(rtt_s=0.2, streams=1, window_bytes=2**20)
    assert deploy_prfaas(replace(setting, extensions=Extensions(network=few))).lambda_max < near.lambda_max


def test_queueing_lengthens_ttft_the_more_the_higher_the_load():
    means = [
        deploy_prfaas(
            replace(case_study("exact"), extensions=Extensions(queueing=Queueing(load=load)))
        ).mean_ttft_s
        for load in (0.1, 0.6, 0.9)
    ]
    assert means == sorted(means)
    assert means[0] == pytest.approx(deploy_prfaas(case_study("exact")).mean_ttft_s, rel=0.01)
    assert means[2] > 1.2 * means[0]


def test_an_slo_is_met_and_costs_throughput():
    free = deploy_prfaas(case_study("exact"))
    tight = replace(case_study("exact"), extensions=Extensions(queueing=Queueing(), slo=Slo(ttft_p90_s=5.0)))
    held = deploy_prfaas(tight)
    assert held.p90_ttft_s <= 5.0 * 1.001
    assert 0 < held.lambda_max < free.lambda_max
    assert held.bottleneck == "slo"


def test_an_slo_that_nothing_meets_is_refused():
    for slo in (Slo(ttft_p90_s=1.0), Slo(tpot_s=0.020)):
        with pytest.raises(LabError, match="meet"):
            deploy(replace(case_study(), extensions=Extensions(slo=slo)))


def test_the_price_of_equal_throughput_follows_gpus_and_egress():
    gpus = Prices(gpu_hour_usd={"8xH200": 2.0, "8xH20": 1.0})
    found = deploy_prfaas(replace(case_study(), extensions=Extensions(prices=gpus)))
    assert found.usd_per_hour == pytest.approx(32 * 2 + 64)
    dear = replace(gpus, egress_gb_usd=0.01)
    with_egress = deploy_prfaas(replace(case_study(), extensions=Extensions(prices=dear)))
    assert with_egress.usd_per_hour == pytest.approx(128 + found.egress_bps / 8e9 * 3600 * 0.01)
    with pytest.raises(LabError, match="no price for hardware '8xH20'"):
        deploy_prfaas(
            replace(case_study(), extensions=Extensions(prices=Prices(gpu_hour_usd={"8xH200": 2.0})))
        )


def test_without_a_prfaas_site_there_is_only_the_homogeneous_deployment():
    alone = replace(case_study(), fleet=case_study().fleet.homogeneous())
    assert list(deploy(alone)) == ["homogeneous"]
    with pytest.raises(LabError, match="needs a prfaas"):
        deploy_prfaas(alone)
