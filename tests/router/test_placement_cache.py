"""Claims about both regimes: where caches count per datacenter, and where the best one anywhere does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.router import DatacenterView, EngineView, PathView, Placement, Plan, View, policy
from prfaas_lab.router.placement_cache import ABUNDANT_BELOW, MARGIN
from prfaas_lab.router.values import CacheView
from prfaas_lab.workload.request import Request

REQUEST = Request(id="r", arrival_s=0.0, prompt=(9,) * 2000, output_tokens=1)
PLAN = Plan(threshold_tokens=512)
TOKEN_BYTES, STATE_BYTES, RATE_BPS, RTT_S = 1000, 100_000, 1e8, 0.02


def view(east: int, west: int, *, s_per_token: float | None = 1e-3, **path: float | bool) -> View:
    """PrfaaS east and local west hold so many tokens of the request's prompt."""
    ways = {"rate_bps": RATE_BPS, "rtt_s": RTT_S, **path}
    return View(
        datacenters=(
            DatacenterView(name="east", role="prfaas", prefix_tokens=east),
            DatacenterView(name="west", role="local", prefix_tokens=west),
        ),
        engines=(
            EngineView(name="east-p0", datacenter="east", role="prefill", prefix_tokens=east,
                       prefill_s_per_token=s_per_token),
            EngineView(name="west-p0", datacenter="west", role="prefill", prefix_tokens=west,
                       prefill_s_per_token=s_per_token),
            EngineView(name="west-d0", datacenter="west", role="decode"),
        ),
        paths=tuple(
            PathView(source=source, destination=destination, **ways)  # type: ignore[arg-type]
            for source, destination in (("east", "west"), ("west", "east"))
        ),
        cache=CacheView(token_bytes=TOKEN_BYTES, state_bytes=STATE_BYTES),
    )  # fmt: skip


FUTILE = CacheView(
    token_bytes=TOKEN_BYTES, state_bytes=STATE_BYTES, futile=frozenset({("east-p0", "west-p0")})
)


def placed(seen: View) -> Placement:
    return policy("cache-aware")(REQUEST, seen, PLAN)


def test_a_prefix_far_away_is_copied_when_that_beats_computing_it() -> None:
    placement = placed(view(east=1792, west=0))
    assert (placement.prefill, placement.copy_from, placement.offloaded) == ("west-p0", "east-p0", False)
    assert placement.uncached_tokens == 208
    assert "abundant" in placement.reason


@pytest.mark.parametrize(
    "scarce",
    [
        view(1792, 0, utilization=ABUNDANT_BELOW + 0.01),
        view(1792, 0, up=False),
        view(1792, 0, rate_bps=0.0),
        view(1792, 0, s_per_token=None),
        view(1792, 0, s_per_token=1e-5),
        replace(view(1792, 0), cache=None),
        replace(view(1792, 0), paths=()),
        replace(view(1792, 0), cache=FUTILE),
    ],
)
def test_where_bandwidth_is_scarce_or_nobody_can_tell_caches_count_per_datacenter(scarce: View) -> None:
    placement = placed(scarce)
    assert placement == policy("threshold")(REQUEST, scarce, PLAN)
    assert placement.copy_from is None


@given(east=st.integers(0, 15), west=st.integers(0, 15), ms=st.floats(0.001, 2), rate=st.floats(1e6, 1e10))
def test_a_copy_is_always_longer_than_what_is_held_and_faster_than_computing(
    east: int, west: int, ms: float, rate: float
) -> None:
    seen = view(128 * east, 128 * west, s_per_token=ms / 1e3, rate_bps=rate)
    placement = placed(seen)
    engines = {engine.name: engine for engine in seen.engines}
    if placement.copy_from is None:
        assert placement.uncached_tokens == 2000 - engines[placement.prefill].prefix_tokens
        return
    lacking = engines[placement.copy_from].prefix_tokens - engines[placement.prefill].prefix_tokens
    wire_s = RTT_S + 8 * (lacking * TOKEN_BYTES + STATE_BYTES) / rate
    assert lacking > 0
    assert lacking * ms / 1e3 > MARGIN * wire_s
    assert placement.uncached_tokens == 2000 - engines[placement.copy_from].prefix_tokens


def test_within_a_datacenter_a_copy_is_as_good_as_free() -> None:
    seen = view(0, 0)
    busy = EngineView(name="west-p1", datacenter="west", role="prefill", prefix_tokens=1792,
                      queued_tokens=9000, prefill_s_per_token=1e-3)  # fmt: skip
    sites = (seen.datacenters[0], replace(seen.datacenters[1], prefix_tokens=1792))
    placement = placed(replace(seen, datacenters=sites, engines=(*seen.engines, busy)))
    assert (placement.prefill, placement.copy_from) == ("west-p0", "west-p1")
