"""Profiles and fleets made up by hypothesis: any rising curves, the local one slower."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from prfaas_lab.model.profile import CacheCurve, Decode, PrefillCurve, Profile, StepCurve
from prfaas_lab.planner.fleet import Cap, Fleet, Site
from prfaas_lab.planner.lengths import TruncatedLogNormal
from prfaas_lab.planner.setting import Mode, Setting

LENGTHS = (1024, 8192, 32768, 131072)


def profile(name: str, times: list[float], sizes: list[int], batch: int = 20) -> Profile:
    """A profile through the four lengths of the paper's tables, at 25 ms a step."""
    step = StepCurve(source="a test", knots=((batch, 0.025),))
    return Profile(
        hardware=name,
        model="made up",
        gpus=8,
        prefill=PrefillCurve(source="a test", knots=tuple(zip(LENGTHS, times, strict=True))),
        kvcache=CacheCurve(source="a test", knots=tuple(zip(LENGTHS, sizes, strict=True))),
        decode=Decode(bs_max=batch, step=step),
    )


@st.composite
def convex_times(draw: st.DrawFn) -> list[float]:
    """Seconds at the four lengths, ever steeper, from above zero."""
    slopes = sorted(draw(st.floats(1e-5, 2e-4)) for _ in range(3))
    times = [slopes[0] * LENGTHS[0] + draw(st.floats(0.05, 1.0))]
    for slope, (low, high) in zip(slopes, pairwise(LENGTHS), strict=True):
        times.append(times[-1] + slope * (high - low))
    return times


@st.composite
def settings_of(draw: st.DrawFn, mode: Mode = "exact") -> Setting:
    """One PrfaaS site, one local site, a link, and log-normal prompts."""
    state_bytes, token_bytes = draw(st.integers(0, 200)) * 2**20, draw(st.integers(1000, 100_000))
    sizes = [state_bytes + token_bytes * length for length in LENGTHS]
    rate_bps = draw(st.floats(1e8, 1e11))
    return Setting(
        fleet=Fleet(
            prfaas=(
                Site(
                    name="far",
                    profile=profile("fast", draw(convex_times()), sizes),
                    instances=draw(st.integers(1, 6)),
                ),
            ),
            local=(
                Site(
                    name="here",
                    profile=profile("slow", draw(convex_times()), sizes),
                    instances=draw(st.integers(2, 10)),
                ),
            ),
            caps=(Cap(name="wan", rate_bps=rate_bps, pairs=frozenset({("far", "here")})),),
        ),
        prompts=TruncatedLogNormal(
            mu=draw(st.floats(7, 10.5)), sigma=draw(st.floats(0.3, 1.5)), low=128, high=131072
        ),
        output_tokens=draw(st.integers(64, 4096)),
        mode=mode,
    )
