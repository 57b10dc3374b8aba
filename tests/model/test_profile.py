from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.errors import LabError, SpecError
from prfaas_lab.model import profile as profile_module
from prfaas_lab.model.profile import PrefillCurve, find_profile, read_profile, shipped_hardware

MIB = 2**20
GOOD = """
hardware: lab
model: tiny
gpus: 1
prefill: {source: a test, knots: [[1Ki, 2s], [2Ki, 3s]]}
kvcache: {source: a test, derived: true, knots: [[1Ki, 1MiB], [2Ki, 2MiB]]}
decode: {bs_max: 4, step: {source: a test, knots: [[1, 10ms], [4, 13ms]]}}
"""


@st.composite
def curves(draw: st.DrawFn) -> PrefillCurve:
    """Rising curves through 1 to 5 knots that start at or above 0."""
    count = draw(st.integers(1, 5))
    xs = sorted(draw(st.sets(st.integers(1, 10**5), min_size=count, max_size=count)))
    base, slopes = (
        draw(st.floats(0.01, 5.0)),
        [draw(st.floats(1e-6, 1e-3)) for _ in xs],
    )
    knots, value = [], base + slopes[0] * xs[0]
    for i, x in enumerate(xs):
        value += slopes[i] * (x - xs[i - 1]) if i else 0.0
        knots.append((x, value))
    # The line through the first two knots must not fall below 0 at 0.
    if count > 1 and knots[0][1] < (knots[1][1] - knots[0][1]) / (xs[1] - xs[0]) * xs[0]:
        knots = knots[:1]
    return PrefillCurve(source="hypothesis", knots=tuple(knots))


@given(curves(), st.lists(st.floats(0, 3e5), min_size=1, max_size=20))
def test_many_points_answer_as_each_alone_and_never_fall(curve: PrefillCurve, xs: list[float]):
    values = curve.many(sorted(xs))
    assert values.tolist() == pytest.approx([curve.at(x) for x in sorted(xs)])
    assert all(a <= b + 1e-9 for a, b in pairwise(values))
    assert values.min() >= -1e-9


@given(curves())
def test_a_curve_goes_through_its_knots(curve: PrefillCurve):
    for x, y in curve.knots:
        assert curve.at(x) == pytest.approx(y)


@given(curves(), st.floats(0, 3e5))
def test_the_inverse_leads_back(curve: PrefillCurve, x: float):
    back = curve.inverse(curve.at(x))
    if len(curve.knots) == 1:
        assert back == float("inf")
    else:
        assert curve.at(back) == pytest.approx(curve.at(x), rel=1e-6, abs=1e-9)


def test_beyond_the_ends_the_outermost_lines_go_on():
    curve = PrefillCurve(source="a test", knots=((100, 1.0), (200, 2.0), (300, 4.0)))
    assert curve.at(0) == pytest.approx(0.0)
    assert curve.at(400) == pytest.approx(6.0)
    assert curve.inverse(-0.1) == float("-inf")


def test_a_profile_reads_its_units_and_decodes():
    profile = read_profile(GOOD, "good.yaml")
    assert profile.prefill_s(1536) == pytest.approx(2.5)
    assert profile.kv_bytes(1536) == pytest.approx(1.5 * MIB)
    assert profile.step_s(2) == pytest.approx(0.011)
    assert profile.bs_max == 4
    assert (profile.prefill.derived, profile.kvcache.derived) == (False, True)


def test_every_mistake_is_told_at_once_with_its_line():
    wrong = GOOD.replace("gpus: 1", "gpus: 0").replace("[2Ki, 3s]", "[1Ki, 3s]") + "colour: red\n"
    with pytest.raises(SpecError) as caught:
        read_profile(wrong, "wrong.yaml")
    told = str(caught.value)
    assert "wrong.yaml:4" in told
    assert "rising order" in told
    assert "colour" in told


@pytest.mark.parametrize(
    "knots", ["[[2Ki, 3s], [1Ki, 1s]]", "[[1Ki, 3s], [2Ki, 1s]]", "[[1Ki, 1s], [2Ki, 9s]]"]
)
def test_curves_that_fall_or_go_below_zero_are_refused(knots: str):
    with pytest.raises(SpecError):
        read_profile(GOOD.replace("[[1Ki, 2s], [2Ki, 3s]]", knots), "wrong.yaml")


def test_unknown_hardware_is_told_with_the_nearest_name():
    with pytest.raises(SpecError, match="did you mean '8xH20'"):
        find_profile("8xH2O")
    with pytest.raises(SpecError, match="no such profile"):
        find_profile("missing.yaml")


def test_a_file_beside_the_topology_is_a_profile_too(tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD)
    assert find_profile("mine.yaml", folder=tmp_path).hardware == "lab"


def test_hardware_that_never_decoded_says_so():
    with pytest.raises(LabError, match="no decode profile"):
        _ = find_profile("8xH200").bs_max


def test_every_shipped_file_is_found_by_its_hardware():
    files = list(Path(profile_module.__file__).with_name("profiles").glob("*.yaml"))
    assert len(shipped_hardware()) == len(files) > 0
    assert [find_profile(name).hardware for name in shipped_hardware()] == list(shipped_hardware())


@pytest.mark.parametrize("hardware", shipped_hardware())
def test_a_shipped_profile_names_the_source_of_every_curve(hardware: str):
    profile = find_profile(hardware)
    for curve in (profile.prefill, profile.kvcache):
        assert "2604.15039" in curve.source or "measured" in curve.source or curve.derived


def test_the_paper_s_hybrid_has_fixed_state_and_a_linear_rest():
    profile = find_profile("8xH200")
    assert profile.kv_bytes(0) == pytest.approx(172 * MIB, rel=0.02)
    per_1024 = (profile.kv_bytes(131072) - profile.kv_bytes(32768)) / 96
    assert per_1024 == pytest.approx(16.74 * MIB, rel=0.01)


def test_a_machine_is_read_where_a_profile_has_one():
    assert read_profile(GOOD, "lab.yaml").machine is None
    machine = read_profile(GOOD + "machine: {source: a test, cores: 1.8, restore: 3ms}\n", "lab.yaml").machine
    assert machine is not None
    assert (machine.cores, machine.order, machine.restore) == (1.8, 0.0, 0.003)
    with pytest.raises(SpecError, match="cores"):
        read_profile(GOOD + "machine: {source: a test, cores: 0}\n", "lab.yaml")
