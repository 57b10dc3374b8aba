"""A workload's requests: seeded, independent in their parts, bounded in time and number."""

from __future__ import annotations

from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas_lab.spec.scenario import Workload
from prfaas_lab.workload import Request, generate
from prfaas_lab.workload.prompts import RESERVED_IDS


def workload(**overrides: Any) -> Workload:
    values: dict[str, Any] = {
        "requests": 40,
        "arrivals": {"kind": "onoff", "rate": 4, "on": "3s", "off": "5s", "off_rate": 0.5},
        "prompt": {"kind": "lognormal", "mu": 4.0, "sigma": 1.0, "min": 8, "max": 300},
        "output": {"kind": "lognormal", "mu": 2.0, "sigma": 1.0, "min": 1, "max": 50},
    }
    return Workload.model_validate({**values, **overrides})


def requests(of: Workload, seed: int = 1, duration_s: float = 1e9, time_scale: float = 1.0) -> list[Request]:
    return list(generate(of, seed=seed, vocab_size=512, duration_s=duration_s, time_scale=time_scale))


@given(seed=st.integers(0, 2**63))
@settings(max_examples=20)
def test_the_same_seed_gives_the_same_requests(seed: int) -> None:
    assert requests(workload(), seed) == requests(workload(), seed)


def test_another_seed_gives_other_requests() -> None:
    one, other = requests(workload(), 1), requests(workload(), 2)
    for aspect in ("arrival_s", "prompt", "prompt_tokens", "output_tokens"):
        assert [getattr(r, aspect) for r in one] != [getattr(r, aspect) for r in other]


FIXED = {"kind": "fixed", "tokens": 5}


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"prompt": FIXED}, ["arrival_s", "output_tokens"]),
        ({"output": FIXED}, ["arrival_s", "prompt"]),
        ({"arrivals": {"kind": "uniform", "rate": 1}}, ["prompt", "output_tokens"]),
    ],
)
def test_changing_one_aspect_leaves_the_others(changed: dict[str, Any], kept: list[str]) -> None:
    before, after = requests(workload()), requests(workload(**changed))
    for aspect in kept:
        assert [getattr(r, aspect) for r in before] == [getattr(r, aspect) for r in after]


def test_asking_for_more_requests_keeps_the_first_ones() -> None:
    assert requests(workload(requests=60))[:40] == requests(workload())


def test_a_shorter_maximum_keeps_the_beginning_of_every_prompt() -> None:
    shorter = workload(prompt={"kind": "lognormal", "mu": 4.0, "sigma": 1.0, "min": 8, "max": 100})
    for long, short in zip(requests(workload()), requests(shorter), strict=True):
        assert short.prompt_tokens <= long.prompt_tokens
        assert short.prompt == long.prompt[: short.prompt_tokens]


@pytest.mark.parametrize("kind", ["poisson", "gamma", "uniform"])
def test_arrivals_come_in_order_with_ids_of_their_own_and_stop_at_the_duration(kind: str) -> None:
    found = requests(workload(requests=None, arrivals={"kind": kind, "rate": 20}), duration_s=10.0)
    times = [request.arrival_s for request in found]
    assert all(a <= b for a, b in pairwise(times))  # type: ignore[operator]
    assert times[-1] <= 10.0  # type: ignore[operator]
    assert 100 < len(found) < 300
    assert len({request.id for request in found}) == len(found)


@given(time_scale=st.floats(0.01, 100))
@settings(max_examples=20)
def test_time_scale_stretches_arrivals_and_nothing_else(time_scale: float) -> None:
    for plain, stretched in zip(
        requests(workload(), duration_s=12.0),
        requests(workload(), duration_s=12.0, time_scale=time_scale),
        strict=True,
    ):
        assert stretched.arrival_s == pytest.approx(plain.arrival_s * time_scale)  # type: ignore[operator]
        assert (stretched.id, stretched.prompt) == (plain.id, plain.prompt)


def test_prompts_use_the_whole_vocabulary_but_no_reserved_id() -> None:
    ids = {token for request in requests(workload(requests=200)) for token in request.prompt}
    assert (min(ids), max(ids)) == (RESERVED_IDS, 511)


def test_prompts_share_no_prefix() -> None:
    prompts = [request.prompt[:6] for request in requests(workload(requests=300))]
    assert len(set(prompts)) == len(prompts)


def test_a_closed_loop_has_no_arrival_times_and_no_end_of_its_own() -> None:
    endless = workload(requests=None, arrivals={"kind": "closed", "clients": 4})
    first = list(islice(generate(endless, seed=1, vocab_size=64, duration_s=1.0), 50))
    assert [request.arrival_s for request in first] == [None] * 50
    assert len(requests(workload(requests=7, arrivals={"kind": "closed", "clients": 4}))) == 7


def test_requests_are_made_one_by_one() -> None:
    endless = workload(requests=None)
    stream = generate(endless, seed=1, vocab_size=64, duration_s=1e12)
    assert next(stream).id == "r00000"
    assert next(stream).id == "r00001"
