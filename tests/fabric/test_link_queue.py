"""The queue of the user-space shapers, on a clock that the tests set."""

from __future__ import annotations

import itertools
import math
import statistics
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.fabric.link_queue import CREDIT_S, UNLIMITED_BYTES, Conditions, LinkQueue

MBIT = 1e6


def queue(seed: int = 0, **conditions: object) -> LinkQueue[bytes]:
    return LinkQueue(Conditions(**conditions), Random(seed))  # type: ignore[arg-type]


def put(link: LinkQueue[bytes], now: float, wire_bytes: int = 1250, packet: bytes = b"x") -> bool:
    return link.offer(packet, wire_bytes, 1, now, now)


def drain(link: LinkQueue[bytes], until: float = math.inf) -> list[tuple[float, bytes]]:
    """(time, packet) of all that arrives, calling `release` only when `next_due` says so."""
    arrived: list[tuple[float, bytes]] = []
    while (due := link.next_due()) <= until and due < math.inf:
        arrived += [(due, packet) for packet in link.release(due)]
    return arrived


def test_a_packet_takes_its_bytes_over_the_rate_plus_the_delay() -> None:
    link = queue(rate_bps=10 * MBIT, delay_s=0.025)
    put(link, now=1.0)
    assert drain(link) == [(pytest.approx(1.0 + 0.001 + 0.025), b"x")]


def test_a_burst_leaves_at_exactly_the_rate() -> None:
    link = queue(rate_bps=10 * MBIT)
    for _ in range(100):
        put(link, now=1.0)
    assert [at for at, _ in drain(link)] == pytest.approx([1.0 + 0.001 * (i + 1) for i in range(100)])


def test_waking_late_does_not_slow_the_link() -> None:
    link = queue(rate_bps=10 * MBIT)
    for _ in range(100):
        put(link, now=0.0)
    assert sum(len(link.release(now)) for now in (0.0335, 0.0912, 0.1001)) == 100


def test_a_packet_read_late_gets_at_most_the_credit_and_never_arrives_before_it_was_read() -> None:
    link = queue(rate_bps=10 * MBIT, delay_s=0.025)
    link.offer(b"x", 12500, 1, now=1.0, since=0.0)
    assert drain(link)[0][0] == pytest.approx(1.0 + 0.010 - CREDIT_S + 0.025)
    late = queue(rate_bps=1000 * MBIT, delay_s=0.025)
    late.offer(b"x", 125, 1, now=1.0, since=0.0)
    assert drain(late)[0][0] == pytest.approx(1.025)


def test_a_change_of_rate_holds_at_once_for_what_already_waits() -> None:
    link = queue(rate_bps=10 * MBIT)
    for _ in range(10):
        put(link, now=0.0)
    before = len(link.release(0.0045))  # four sent, the fifth half sent
    link.change(Conditions(rate_bps=1 * MBIT), 0.0045)
    times = [at for at, _ in drain(link)]
    assert before == 4
    assert times == pytest.approx([0.0045 + 0.005 + 0.010 * i for i in range(6)])


def test_rate_zero_stops_everything_and_ends_without_a_burst() -> None:
    link = queue(rate_bps=10 * MBIT)
    for _ in range(10):
        put(link, now=0.0)
    assert len(link.release(0.0025)) == 2
    link.change(Conditions(rate_bps=0.0), 0.0025)
    assert link.next_due() == math.inf
    assert link.release(100.0) == []
    link.change(Conditions(rate_bps=10 * MBIT), 100.0)
    times = [at for at, _ in drain(link)]
    assert times == pytest.approx([100.0005 + 0.001 * i for i in range(8)])


def test_an_outage_keeps_a_bounded_queue() -> None:
    link = queue(rate_bps=0.0, limit_bytes=10_000)
    taken = sum(put(link, now=float(i)) for i in range(100))
    assert (taken, link.backlog_bytes, link.dropped_total) == (8, 10_000, 92)


def test_removing_the_rate_lets_the_queue_go() -> None:
    link = queue(rate_bps=1.0)
    put(link, now=0.0)
    link.change(Conditions(), 5.0)
    assert link.release(5.0) == [b"x"]


def test_a_shorter_delay_lets_nothing_overtake() -> None:
    link = queue(delay_s=0.1)
    put(link, now=0.0, packet=b"slow")
    link.change(Conditions(delay_s=0.01), 0.0)
    put(link, now=0.0, packet=b"fast")
    assert drain(link) == [(0.1, b"slow"), (0.1, b"fast")]


def test_what_flies_at_the_old_rate_does_not_fill_the_smaller_queue_of_the_new() -> None:
    link = queue(rate_bps=1000 * MBIT, delay_s=0.1, limit_bytes=20_000_000)
    for i in range(10_000):
        put(link, now=i * 1e-5)
    assert link.backlog_bytes > 12_000_000
    link.change(Conditions(rate_bps=10 * MBIT, delay_s=0.1, limit_bytes=375_000), 0.1)
    assert put(link, now=0.1)


def test_a_direction_without_any_limit_is_bounded_all_the_same() -> None:
    link = queue(delay_s=10.0)
    accepted = sum(put(link, now=0.0, wire_bytes=2**20) for _ in range(100))
    assert accepted == UNLIMITED_BYTES // 2**20


@pytest.mark.parametrize(
    ("distribution", "mean", "deviation"), [("uniform", 0.0, 3**-0.5), ("normal", 0.0, 1.0)]
)
def test_jitter_has_its_distribution(distribution: str, mean: float, deviation: float) -> None:
    link = queue(delay_s=1.0, jitter_s=0.1, distribution=distribution)
    delays = []
    for i in range(5000):
        put(link, now=10.0 * i)
        delays.append(drain(link)[0][0] - 10.0 * i)
    assert statistics.mean(delays) == pytest.approx(1.0 + mean, abs=4 * 0.1 / 5000**0.5)
    assert statistics.stdev(delays) == pytest.approx(0.1 * deviation, rel=0.05)


def test_pareto_jitter_is_skewed_to_late() -> None:
    link = queue(delay_s=1.0, jitter_s=0.1, distribution="pareto")
    delays = []
    for i in range(2000):
        put(link, now=10.0 * i)
        delays.append(drain(link)[0][0] - 10.0 * i - 1.0)
    assert max(delays) > 3 * -min(delays)


def test_correlated_jitter_is_correlated() -> None:
    link = queue(delay_s=1.0, jitter_s=0.1, distribution="normal", correlation=0.8)
    delays = []
    for i in range(5000):
        put(link, now=10.0 * i)
        delays.append(drain(link)[0][0] - 10.0 * i)
    assert statistics.correlation(delays[:-1], delays[1:]) == pytest.approx(0.8, abs=0.04)


def test_random_loss_lies_within_three_sigma() -> None:
    link = queue(loss_good=0.02, loss_bad=0.02)
    for i in range(20_000):
        put(link, now=float(i))
        link.release(float(i))
    lost = link.dropped_total
    assert abs(lost - 400) < 3 * (20_000 * 0.02 * 0.98) ** 0.5


def test_gilbert_elliott_loses_in_bursts() -> None:
    link = queue(loss_bad=1.0, good_to_bad=0.01, bad_to_good=0.25)
    fates = []
    for i in range(50_000):
        fates.append(not put(link, now=float(i)))
        link.release(float(i))
    bursts = sum(lost and not before for before, lost in itertools.pairwise(fates))
    assert sum(fates) / len(fates) == pytest.approx(0.01 / 0.26, rel=0.15)
    assert sum(fates) / bursts == pytest.approx(1 / 0.25, rel=0.1)


RATES = st.one_of(st.none(), st.just(0.0), st.floats(1e3, 1e10))
CONDITIONS = st.builds(
    Conditions,
    rate_bps=RATES,
    delay_s=st.floats(0, 0.2),
    jitter_s=st.sampled_from((0.0, 0.01)),
    distribution=st.sampled_from(("uniform", "normal", "pareto", "paretonormal")),
    correlation=st.sampled_from((0.0, 0.5, 1.0)),
    loss_good=st.sampled_from((0.0, 0.1)),
    loss_bad=st.just(0.5),
    good_to_bad=st.sampled_from((0.0, 0.1)),
    bad_to_good=st.just(0.5),
    limit_bytes=st.one_of(st.none(), st.integers(3000, 10**6)),
)
STEPS = st.lists(
    st.tuples(
        st.floats(0, 0.05),
        st.one_of(st.integers(60, 66_000), st.none(), CONDITIONS),
    ),
    max_size=60,
)


@given(CONDITIONS, STEPS)
def test_packets_are_conserved_in_order_and_on_time(
    first: Conditions, steps: list[tuple[float, object]]
) -> None:
    link, now, accepted, arrived = LinkQueue(first, Random(1)), 0.0, [], []
    for number, (gap, step) in enumerate(steps):
        now += gap
        if isinstance(step, Conditions):
            link.change(step, now)
        elif isinstance(step, int):
            packet = str(number).encode()
            if link.offer(packet, step, 1, now, now):
                accepted.append(packet)
        else:
            arrived += link.release(now)
            assert link.next_due() > now
        assert link.offered_bytes == link.bytes_total + link.dropped_bytes + link.backlog_bytes
        assert link.offered_packets == link.packets_total + link.dropped_total + link.backlog_packets
        assert link.backlog_bytes >= 0
    link.change(Conditions(), now)
    arrived += link.release(now + 100.0)
    assert arrived == accepted
    assert link.backlog_bytes == 0


@given(st.floats(1e5, 1e9), st.lists(st.tuples(st.floats(0, 0.01), st.integers(60, 66_000)), max_size=50))
def test_no_window_carries_more_than_the_rate(rate: float, arrivals: list[tuple[float, int]]) -> None:
    link, now, sizes = queue(rate_bps=rate, delay_s=0.01), 0.0, []
    for gap, size in arrivals:
        now += gap
        put(link, now, wire_bytes=size)
        sizes.append(size)
    times = [at for at, _ in drain(link)]
    for i in range(len(times)):
        carried = sum(sizes[i + 1 :]) * 8
        assert times[-1] - times[i] >= carried / rate - 1e-9


@given(st.lists(st.floats(1e5, 1e9), min_size=1, max_size=20), st.integers(1, 200))
def test_bytes_sent_are_the_integral_of_the_rate(rates: list[float], packets: int) -> None:
    """However the rate steps while a queue stands, its last bit leaves when the integral says so."""
    link = queue(rate_bps=rates[0])
    for _ in range(packets):
        put(link, now=0.0)
    total_bits, sent_bits, now = packets * 1250 * 8, 0.0, 0.0
    for rate in rates[1:]:
        sent_bits += (link._conditions.rate_bps or 0.0) * 0.001
        now += 0.001
        link.change(Conditions(rate_bps=rate), now)
    left_bits = total_bits - sent_bits
    times = drain(link)
    if left_bits > 1:
        assert times[-1][0] == pytest.approx(now + left_bits / rates[-1], rel=1e-6)
