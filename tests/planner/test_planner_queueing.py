from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.model.profile import find_profile
from prfaas_lab.planner import ttft
from prfaas_lab.planner.lengths import TruncatedLogNormal
from prfaas_lab.planner.queueing import NO_WAIT, erlang_c, wait
from prfaas_lab.planner.ttft import Stream

CASE = TruncatedLogNormal(mu=9.9, sigma=1.0, low=128, high=131072)


def test_one_markovian_server_waits_as_the_textbook_says():
    found = wait(rate=0.8, servers=1, service_s=1.0, service_square=2.0)
    assert found.chance == pytest.approx(0.8)
    assert found.mean_s == pytest.approx(0.8 / 0.2)


def test_constant_service_halves_the_wait():
    found = wait(rate=0.8, servers=1, service_s=1.0, service_square=1.0)
    assert found.mean_s == pytest.approx(0.8 / 0.2 / 2)


def test_erlang_c_of_two_servers_has_its_closed_form():
    load = 1.2
    assert erlang_c(2, load) == pytest.approx(load**2 / (2 + load))


@given(st.integers(1, 200), st.floats(0.01, 0.98), st.floats(0.01, 0.98))
def test_a_higher_load_never_waits_less(servers: int, one: float, other: float):
    low, high = sorted((one, other))
    waits = [wait(rate=x * servers, servers=servers, service_s=1.0, service_square=1.5) for x in (low, high)]
    assert waits[0].mean_s <= waits[1].mean_s * (1 + 1e-9)
    assert 0 <= waits[0].chance <= waits[1].chance <= 1


def test_an_overloaded_queue_has_no_end():
    assert wait(rate=2.0, servers=1, service_s=1.0, service_square=1.0).mean_s == math.inf
    stream = Stream(
        law=CASE, low=0, high=math.inf, share=1.0, curve=find_profile("8xH200").prefill, servers=1
    )
    assert ttft.percentile_s([stream], [stream.waiting(10.0, 1.0)], 0.9) == math.inf


def test_without_queueing_ttft_is_prefill_time():
    curve = find_profile("8xH200").prefill
    stream = Stream(law=CASE, low=-1, high=math.inf, share=1.0, curve=curve, servers=4)
    p90 = ttft.percentile_s([stream], [NO_WAIT], 0.9)
    assert float(CASE.partial(0, curve.inverse(p90))) == pytest.approx(0.9, abs=1e-6)


def test_the_slices_agree_with_the_closed_form_as_waiting_vanishes():
    curve = find_profile("8xH200").prefill
    stream = Stream(law=CASE, low=-1, high=math.inf, share=1.0, curve=curve, servers=4)
    exact = ttft.percentile_s([stream], [NO_WAIT], 0.9)
    barely = ttft.percentile_s([stream], [stream.waiting(1e-3, 1.0)], 0.9)
    assert barely == pytest.approx(exact, rel=0.02)
