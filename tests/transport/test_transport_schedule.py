"""Which transfer goes next."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.transport.limits import MAX_AUTO_CONNECTIONS, MIN_AUTO_CONNECTIONS, Limits, PathHint
from prfaas_lab.transport.schedule import POLICIES, choose, fifo, shortest, weighted


@dataclass(frozen=True)
class Waiting:
    order: int
    remaining_bytes: int = 0
    served: float = 0.0


waiting = st.lists(
    st.builds(Waiting, st.integers(0, 99), st.integers(0, 10), st.floats(0, 10)), unique_by=lambda w: w.order
)


@given(waiting)
def test_each_policy_puts_its_own_kind_first(candidates):
    for policy in POLICIES.values():
        assert (choose(policy, candidates) is None) == (not candidates)
    if candidates:
        assert choose(fifo, candidates).order == min(c.order for c in candidates)
        assert choose(shortest, candidates).remaining_bytes == min(c.remaining_bytes for c in candidates)
        assert choose(weighted, candidates).served == min(c.served for c in candidates)


def test_weighted_serves_in_proportion():
    weights, turns = {0: 1.0, 1: 3.0}, Counter()
    candidates = {order: Waiting(order) for order in weights}
    for _ in range(400):
        chosen = choose(weighted, candidates.values())
        turns[chosen.order] += 1
        candidates[chosen.order] = replace(chosen, served=chosen.served + 1 / weights[chosen.order])
    assert abs(turns[1] - 300) <= 1


def test_the_longer_and_faster_the_path_the_more_connections_within_bounds():
    def count(rate_bps: float, rtt_s: float) -> int:
        return Limits(path=PathHint(rate_bps=rate_bps, rtt_s=rtt_s)).connections_to_peer()

    counts = [count(10.0**power, 0.05) for power in range(6, 13)]
    assert counts == sorted(counts)
    assert counts[0] == 1  # 6 kB of BDP
    assert counts[1] == MIN_AUTO_CONNECTIONS
    assert counts[-1] == MAX_AUTO_CONNECTIONS
    assert Limits(connections=3).connections_to_peer() == 3


def test_as_few_connections_as_have_room_where_many_pairs_share_a_narrow_path():
    def count(pairs: int) -> int:
        return Limits(path=PathHint(rate_bps=350e6, rtt_s=0.002, pairs=pairs)).connections_to_peer()

    assert count(1) == MIN_AUTO_CONNECTIONS
    assert 1 < count(5) < MIN_AUTO_CONNECTIONS
    assert count(20) == 1  # the least windows of 80 connections are five times the BDP
    wide = PathHint(rate_bps=100e9, rtt_s=0.02, pairs=20_000)
    assert Limits(path=wide).connections_to_peer(2**20) == 2  # one pair alone would have 16
