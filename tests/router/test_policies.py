"""Claims about the policies, over generated deployments."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.errors import LabError
from prfaas_lab.router import (
    POLICIES,
    UNAWARE,
    DatacenterView,
    EngineView,
    NoPlacement,
    PathView,
    Plan,
    View,
    policy,
)
from prfaas_lab.workload.request import Request

PLAN = Plan(threshold_tokens=512)


def request(tokens: int) -> Request:
    return Request(id="r", arrival_s=0.0, prompt=(1,) * tokens, output_tokens=8)


def view(*, up: bool = True, remote_alive: bool = True, local_alive: bool = True, cached: int = 0) -> View:
    return View(
        datacenters=(
            DatacenterView(name="east", role="prfaas"),
            DatacenterView(name="west", role="local", prefix_tokens=cached),
        ),
        engines=(
            EngineView(name="east-p0", datacenter="east", role="prefill", alive=remote_alive),
            EngineView(name="west-p0", datacenter="west", role="prefill", alive=local_alive),
            EngineView(name="west-d0", datacenter="west", role="decode", capacity=8),
        ),
        paths=(PathView(source="east", destination="west", rate_bps=1e8, rtt_s=0.02, up=up),),
    )


@given(st.integers(1, 4096))
def test_long_prompts_are_offloaded_and_short_ones_stay(tokens: int) -> None:
    placement = POLICIES["threshold"](request(tokens), view(), PLAN)
    assert placement.offloaded == (tokens > 512)
    assert placement.prefill == ("east-p0" if tokens > 512 else "west-p0")
    assert placement.decode == "west-d0"


def test_what_is_cached_at_home_does_not_count_towards_the_threshold() -> None:
    assert not POLICIES["threshold"](request(1000), view(cached=600), PLAN).offloaded
    assert POLICIES["threshold"](request(1000), view(cached=400), PLAN).offloaded


@pytest.mark.parametrize("trouble", [{"up": False}, {"remote_alive": False}])
def test_a_long_prompt_stays_home_when_prfaas_cannot_serve(trouble: dict[str, bool]) -> None:
    placement = POLICIES["threshold"](request(2000), view(**trouble), PLAN)
    assert placement.prefill == "west-p0"
    assert "no PrfaaS engine can serve" in placement.reason


def test_a_rate_of_zero_is_no_path() -> None:
    dark = replace(view(), paths=(PathView(source="east", destination="west", rate_bps=0, rtt_s=0.02),))
    assert not POLICIES["threshold"](request(2000), dark, PLAN).offloaded


def test_a_short_prompt_is_offloaded_when_home_cannot_prefill() -> None:
    assert POLICIES["threshold"](request(10), view(local_alive=False), PLAN).offloaded


@given(st.integers(1, 4096))
def test_the_baselines_ignore_length(tokens: int) -> None:
    assert not POLICIES["local-only"](request(tokens), view(), PLAN).offloaded
    assert POLICIES["remote-all"](request(tokens), view(), PLAN).offloaded


def test_remote_all_never_falls_back() -> None:
    with pytest.raises(NoPlacement):
        POLICIES["remote-all"](request(10), view(up=False), PLAN)


@given(st.lists(st.integers(0, 5000), min_size=2, max_size=6))
def test_the_engine_with_the_fewest_waiting_tokens_prefills(waiting: list[int]) -> None:
    engines = tuple(
        EngineView(name=f"west-p{i}", datacenter="west", role="prefill", queued_tokens=tokens)
        for i, tokens in enumerate(waiting)
    )
    crowd = replace(view(), engines=(*engines, view().engines[2]))
    chosen = POLICIES["local-only"](request(10), crowd, PLAN).prefill
    assert waiting[int(chosen.removeprefix("west-p"))] == min(waiting)


def test_an_unknown_policy_names_the_nearest() -> None:
    with pytest.raises(LabError, match="did you mean threshold") as caught:
        policy("treshold")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", sorted(UNAWARE))
@given(tokens=st.integers(1, 4096), busy=st.floats(0, 1), available_bps=st.floats(1, 1e8))
def test_what_passes_a_link_is_nothing_to_policies_that_need_not_be_told(
    name: str, tokens: int, busy: float, available_bps: float
) -> None:
    free, plan = view(), replace(PLAN, offload_share=0.5)
    (path,) = free.paths
    loaded = replace(
        path, utilization=busy, throughput_bps=busy * 1e8, available_bps=available_bps, congested=True,
        backlogged=True,
    )  # fmt: skip
    seen = replace(free, paths=(loaded,), committed_bytes={("east", "west"): 10**12})
    assert policy(name)(request(tokens), seen, plan) == policy(name)(request(tokens), free, plan)
