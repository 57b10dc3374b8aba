from __future__ import annotations

import pytest

from prfaas_lab.model.profile import find_profile
from prfaas_lab.planner import throughput
from prfaas_lab.planner.paper import PaperReport, Row, recompute


@pytest.fixture(scope="module")
def report() -> PaperReport:
    return recompute()


def _found(rows: tuple[Row, ...], item: str) -> Row:
    return next(row for row in rows if row.item == item)


def test_phi_kv_of_tables_3_and_5_is_the_paper_s_within_1_percent(report: PaperReport):
    assert len(report.table3) == 24
    assert len(report.table5) == 4
    for row in (*report.table3, *report.table5):
        assert row.difference is not None
        assert abs(row.difference) < 0.01, row


@pytest.mark.parametrize("policy", ["prfaas", "homogeneous", "naive"])
def test_lambda_max_of_table_6_is_the_paper_s_within_3_percent(report: PaperReport, policy: str):
    difference = _found(report.table6["paper"], f"{policy}.lambda_max").difference
    assert difference is not None
    assert abs(difference) < 0.03


def test_the_best_deployment_is_the_paper_s(report: PaperReport):
    best, alone = report.deployments["prfaas"], report.deployments["homogeneous"]
    assert (best.n_prfaas, best.n_p, best.n_d) == (4, 3, 5)
    assert (alone.n_p, alone.n_d) == (9, 3)
    assert best.threshold_tokens == pytest.approx(19_400, rel=0.03)
    assert best.p == pytest.approx(0.496, rel=0.01)
    assert 12e9 <= best.egress_bps <= 13e9
    assert best.kv_bps == pytest.approx(best.egress_bps * 0.956)


def test_the_best_deployment_has_the_paper_s_ttft(report: PaperReport):
    best, alone = report.deployments["prfaas"], report.deployments["homogeneous"]
    assert (best.mean_ttft_s, best.p90_ttft_s) == pytest.approx((2.22, 3.51), rel=0.01)
    assert (alone.mean_ttft_s, alone.p90_ttft_s) == pytest.approx((4.44, 9.73), rel=0.01)


def test_exact_mode_gives_the_paper_s_ratios(report: PaperReport):
    ablation = report.ablation["exact"]
    assert _found(ablation, "prfaas over homogeneous").ours == pytest.approx(1.54, abs=0.01)
    assert _found(ablation, "prfaas over naive").ours == pytest.approx(1.32, abs=0.01)
    assert report.exact["prfaas"].threshold_tokens == 19_400
    assert report.exact["prfaas"].lambda_max == pytest.approx(3.14, abs=0.01)
    assert report.exact["homogeneous"].lambda_max == pytest.approx(2.03, abs=0.01)
    assert report.exact["naive"].lambda_max == pytest.approx(2.37, abs=0.01)


def test_length_blind_balancing_loses_p90_rather_than_throughput(report: PaperReport):
    ablation = report.ablation["exact"]
    assert report.exact["balanced"].lambda_max == pytest.approx(3.125, abs=0.01)
    assert _found(ablation, "prfaas over balanced").ours == pytest.approx(1.0, abs=0.02)
    assert _found(ablation, "p90 TTFT, prfaas over balanced").ours < 0.75


def test_equation_2_at_the_mean_length_gives_the_paper_s_egress(report: PaperReport):
    assert report.scale[0].ours == pytest.approx(13.0, rel=0.01)


def test_a_price_ratio_of_two_gives_the_paper_s_gain_at_equal_cost(report: PaperReport):
    for mode in ("paper", "exact"):
        gain = _found(report.ablation[mode], "gain at equal cost (H200:H20 = 2:1)").ours
        assert gain == pytest.approx(0.15, abs=0.02)


def test_equations_3_to_6_are_table_6_s_arithmetic():
    h200, h20 = find_profile("8xH200"), find_profile("8xH20")
    prfaas = throughput.theta_prfaas(4, h200.prefill_s(45_046), h200.kv_bytes(45_046), 100e9)
    pd_p = throughput.theta_pd_p(3, h20.prefill_s(10_224))
    pd_d = throughput.theta_pd_d(5, h20.bs_max, h20.step_s(20), 1024)
    assert float(pd_p) == pytest.approx(1.64, abs=0.005)
    assert float(pd_d) == pytest.approx(3.91, abs=0.005)
    assert float(throughput.lambda_max(prfaas, pd_p, pd_d, 0.4957)) == pytest.approx(float(prfaas) / 0.4957)
    assert float(throughput.role_imbalance(prfaas, pd_p, pd_d)) < 0  # prefill-bound, as the paper says


def test_a_class_that_never_occurs_binds_nothing():
    assert float(throughput.lambda_max(0.0, 2.0, 9.0, 0.0)) == 2.0
    assert float(throughput.lambda_max(3.0, 0.0, 9.0, 1.0)) == 3.0
