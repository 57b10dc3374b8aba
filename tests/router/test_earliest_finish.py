"""Claims about the policy that reckons, the one that draws, and how policies are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.errors import LabError
from prfaas_lab.model.profile import find_profile
from prfaas_lab.router import Costs, DatacenterView, EngineView, NoPlacement, PathView, Plan, View, policy
from prfaas_lab.workload.request import Request

PROFILES = {"east": find_profile("8xH200"), "west": find_profile("8xH20")}
PLAN = Plan(threshold_tokens=20_000)


def request(tokens: int, name: str = "r") -> Request:
    return Request(id=name, arrival_s=0.0, prompt=(), length=tokens, output_tokens=8)


def view(*, east_s: float = 0.0, west_s: float = 0.0, rate_bps: float = 1e11, up: bool = True) -> View:
    return View(
        datacenters=(DatacenterView(name="east", role="prfaas"), DatacenterView(name="west", role="local")),
        engines=(
            EngineView(name="east-p0", datacenter="east", role="prefill", queued_s=east_s),
            EngineView(name="west-p0", datacenter="west", role="prefill", queued_s=west_s),
            EngineView(name="west-d0", datacenter="west", role="decode", capacity=8),
        ),
        paths=(PathView(source="east", destination="west", rate_bps=rate_bps, rtt_s=0.02, up=up),),
        costs=Costs(profiles=PROFILES),
    )


@given(st.integers(1, 131_072), st.floats(0, 100), st.floats(0, 100), st.floats(1e8, 1e12))
def test_the_earliest_finish_is_no_later_than_either_side(
    tokens: int, east_s: float, west_s: float, rate_bps: float
) -> None:
    east = east_s + max(PROFILES["east"].prefill_s(tokens), 8 * PROFILES["east"].kv_bytes(tokens) / rate_bps)
    east += 0.01
    west = west_s + PROFILES["west"].prefill_s(tokens)
    found = policy("earliest-finish")(
        request(tokens), view(east_s=east_s, west_s=west_s, rate_bps=rate_bps), PLAN
    )
    assert found.prefill == ("east-p0" if east < west else "west-p0") or east == pytest.approx(west)


def test_what_has_still_to_cross_is_ahead_and_a_measured_rate_counts_while_it_is_of_now() -> None:
    def prefill(seen: View) -> str:
        return policy("earliest-finish")(request(30_000), seen, PLAN).prefill

    free = view()
    (path,) = free.paths
    measured = replace(path, available_bps=1e9)
    assert prefill(free) == "east-p0"
    assert prefill(replace(free, committed_bytes={("east", "west"): 10**12})) == "west-p0"
    behind = replace(free, committed_bytes={("east", "west"): 10**12})
    assert prefill(replace(behind, wire_share=1e-3)) == "east-p0", "compressed"
    assert prefill(replace(free, paths=(measured,))) == "east-p0"
    assert prefill(replace(free, paths=(replace(measured, backlogged=True),))) == "west-p0"


def test_a_dead_link_leaves_only_home() -> None:
    for name in ("earliest-finish", "prfaas", "threshold", "balanced"):
        plan = replace(PLAN, offload_share=1.0)
        assert policy(name)(request(100_000), view(west_s=99, up=False), plan).prefill == "west-p0"


def test_without_profiles_nobody_can_say_who_finishes_first() -> None:
    with pytest.raises(NoPlacement, match="profiles"):
        policy("earliest-finish")(request(100), replace(view(), costs=None), PLAN)


def test_the_balanced_policy_offloads_its_share_whatever_the_length() -> None:
    plan = Plan(offload_share=0.7)
    placed = [
        policy("balanced")(request(100 if n % 2 else 99_000, f"r{n}"), view(), plan) for n in range(4000)
    ]
    assert sum(each.offloaded for each in placed) / 4000 == pytest.approx(0.7, abs=0.03)
    assert sum(each.offloaded for each in placed[1::2]) / 2000 == pytest.approx(0.7, abs=0.04)


def test_a_users_own_policy_is_found_by_its_dotted_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "from prfaas_lab.router import policy\n\ndef mine(*asked):\n    return policy('local-only')(*asked)\n"
    )
    (tmp_path / "my_policies.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert policy("my_policies:mine")(request(1), view(), PLAN).reason == "local-only prefills at home"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 1 / 0", r"wrong\d\.py:2: wrong\d:mine failed: ZeroDivisionError: division by zero"),
        ("return 'mine'", r"wrong\d:mine gave 'mine', which is no Placement"),
        (
            "import dataclasses, prfaas_lab.router as r;"
            " return dataclasses.replace(r.policy('local-only')(request, view, plan), prefill='nowhere')",
            "chose engine 'nowhere', which there is not",
        ),
    ],
)
def test_what_a_users_own_policy_gets_wrong_is_told_as_its_own(
    body: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"wrong{len(body) % 10}"  # of its own: a module is imported once
    (tmp_path / f"{name}.py").write_text(f"def mine(request, view, plan):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LabError, match=says):
        policy(f"{name}:mine")(request(1), view(), PLAN)


@pytest.mark.parametrize(
    "name", ["no_such_module:f", "prfaas_lab.errors:nothing", "prfaas_lab:__version__", ":f"]
)
def test_what_is_no_policy_is_refused_in_words(name: str) -> None:
    with pytest.raises(LabError, match="policy"):
        policy(name)
