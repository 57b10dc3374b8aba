"""Bandwidth in time: laws of every kind, and what is said of a bad trace."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.fluctuation import rates
from prfaas_lab.spec.scenario import Bandwidth

TRACES = Path(__file__).parents[2] / "scenarios" / "traces"
RATE = st.integers(0, 10**9).map(float)
DURATION = st.integers(1, 5000).map(lambda ms: ms / 1000)


def bandwidth(kind: str, **terms: Any) -> Bandwidth:
    return TypeAdapter(Bandwidth).validate_python({"kind": kind, **terms})  # type: ignore[no-any-return]


def path(
    spec: Bandwidth, until_s: float, *, every_s: float = 0.1, seed: int = 0, base_dir: Path = TRACES
) -> list[tuple[float, float]]:
    steps = rates(spec, every_s=every_s, random=Random(seed), base_dir=base_dir)
    return list(itertools.takewhile(lambda step: step[0] < until_s, steps))


def carried_bits(steps: list[tuple[float, float]], until_s: float) -> float:
    ends = [at for at, _ in steps[1:]] + [until_s]
    return sum(rate * (min(end, until_s) - at) for (at, rate), end in zip(steps, ends, strict=True))


def sampled(steps: list[tuple[float, float]], every_s: float, count: int) -> list[float]:
    """The rate in force at the middle of each window."""
    rates_then, index = [], 0
    for i in range(count):
        while index + 1 < len(steps) and steps[index + 1][0] <= (i + 0.5) * every_s:
            index += 1
        rates_then.append(steps[index][1])
    return rates_then


ordered = st.lists(st.integers(1, 3000), min_size=1, max_size=12, unique=True).map(sorted)
ANY = st.one_of(
    st.builds(
        lambda mean, share, period: bandwidth("sine", mean=mean, amplitude=mean * share, period=period),
        RATE, st.floats(0, 1), DURATION,
    ),
    st.builds(
        lambda high, low, period, duty: bandwidth("square", high=high, low=low, period=period, duty=duty),
        RATE, RATE, DURATION, st.floats(0, 1),
    ),
    st.builds(
        lambda times, levels, repeat: bandwidth(
            "steps", steps=[(at / 1000, r) for at, r in zip(times, levels, strict=False)], repeat=repeat
        ),
        ordered, st.lists(RATE, min_size=12, max_size=12), st.none() | DURATION,
    ),
    st.builds(
        lambda mean, deviation, tau: bandwidth("ou", mean=mean, deviation=deviation, relaxation=tau),
        RATE, RATE, DURATION,
    ),
    st.builds(
        lambda states, hold: bandwidth("markov", states=states, hold=hold),
        st.lists(RATE, min_size=2, max_size=5), DURATION,
    ),
    st.sampled_from([
        bandwidth("mahimahi", file="cellular.mahimahi"), bandwidth("csv", file="wan-day.csv")
    ]),
)  # fmt: skip


@given(ANY, st.sampled_from([0.05, 0.1, 1.0]), st.integers(0, 3))
def test_every_path_is_repeatable_begins_at_zero_and_is_never_negative(
    spec: Bandwidth, every_s: float, seed: int
) -> None:
    steps = path(spec, 5.0, every_s=every_s, seed=seed)
    assert steps == path(spec, 5.0, every_s=every_s, seed=seed)
    assert steps[0][0] == 0.0
    assert all(0 <= rate < math.inf for _, rate in steps)


@given(ANY, st.sampled_from([0.05, 0.1, 1.0]))
def test_no_two_changes_are_closer_than_the_period(spec: Bandwidth, every_s: float) -> None:
    times = [at for at, _ in path(spec, 5.0, every_s=every_s)]
    assert all(later - earlier > every_s * (1 - 1e-6) for earlier, later in itertools.pairwise(times))


def test_different_seeds_take_different_paths() -> None:
    ou = bandwidth("ou", mean=1e8, deviation=2e7, relaxation=1.0)
    assert path(ou, 1.0, seed=1) != path(ou, 1.0, seed=2)


def test_steps_come_exactly_when_they_are_written() -> None:
    steps = bandwidth("steps", steps=[("1s", "10Mbit"), ("2.25s", "20Mbit"), ("3s", "5Mbit")])
    assert path(steps, 10.0) == [(0.0, 1e7), (2.25, 2e7), (3.0, 5e6)]


def test_steps_start_over() -> None:
    steps = bandwidth("steps", steps=[("0s", "10Mbit"), ("1s", "20Mbit")], repeat="3s")
    assert path(steps, 7.5) == [(0.0, 1e7), (1.0, 2e7), (3.0, 1e7), (4.0, 2e7), (6.0, 1e7), (7.0, 2e7)]


def test_a_square_is_high_for_its_duty() -> None:
    square = bandwidth("square", high="10Mbit", low="1Mbit", period="4s", duty="25%")
    assert path(square, 8.0) == [(0.0, 1e7), (1.0, 1e6), (4.0, 1e7), (5.0, 1e6)]


@given(
    st.lists(st.tuples(st.integers(1, 400), RATE), min_size=2, max_size=40),
    st.sampled_from([0.05, 0.1, 0.25]),
)
def test_what_changes_too_fast_is_averaged_to_the_same_bytes(
    holds: list[tuple[int, float]], every_s: float
) -> None:
    at_ms, listed = 0, []
    for hold_ms, rate in holds:
        listed.append((at_ms / 1000, rate))
        at_ms += hold_ms
    spec = bandwidth("steps", steps=listed)
    steps = path(spec, math.inf, every_s=every_s)
    until_s = at_ms / 1000 + 1
    assert carried_bits(steps, until_s) == pytest.approx(carried_bits(listed, until_s), rel=1e-9, abs=1)


def test_a_blip_does_not_blur_the_long_hold_after_it() -> None:
    spec = bandwidth("steps", steps=[("0s", 1e8), ("1s", 0), ("1.01s", 1e8), ("9s", 2e8)])
    assert path(spec, 10.0) == [
        (0.0, 1e8),
        (1.0, pytest.approx(0.9e8)),
        (pytest.approx(1.1), 1e8),
        (9.0, 2e8),
    ]


def test_a_sine_has_its_mean_amplitude_and_phase() -> None:
    sine = bandwidth("sine", mean=1e8, amplitude=5e7, period=10, phase=0.25)
    steps = path(sine, 10.0, every_s=0.1)
    assert carried_bits(steps, 10.0) / 10 == pytest.approx(1e8)
    assert max(steps, key=lambda step: step[1])[0] in (0.0, pytest.approx(9.9))
    assert max(rate for _, rate in steps) == pytest.approx(1.5e8, rel=0.001)
    assert min(rate for _, rate in steps) == pytest.approx(0.5e8, rel=0.001)


def test_ornstein_uhlenbeck_has_its_mean_deviation_and_memory_whatever_the_period() -> None:
    ou = bandwidth("ou", mean=1e9, deviation=1e8, relaxation=2.0)
    for every_s in (0.5, 2.0):
        values = sampled(path(ou, 20_000 * every_s, every_s=every_s), every_s, 20_000)
        kept = math.exp(-every_s / 2.0)
        effective = 20_000 * (1 - kept) / (1 + kept)
        assert statistics.mean(values) == pytest.approx(1e9, abs=4 * 1e8 / effective**0.5)
        assert statistics.stdev(values) == pytest.approx(1e8, rel=4 / (2 * effective) ** 0.5)
        for lag in (1, 3):
            measured = statistics.correlation(values[:-lag], values[lag:])
            assert measured == pytest.approx(kept**lag, abs=0.03)


def test_ornstein_uhlenbeck_stays_within_floor_and_ceiling() -> None:
    ou = bandwidth("ou", mean=1e8, deviation=1e8, relaxation=0.2, floor=5e7, ceiling=1.5e8)
    values = [rate for _, rate in path(ou, 200.0)]
    assert (min(values), max(values)) == (5e7, 1.5e8)


def test_markov_spends_equal_time_in_its_states_and_holds_them_as_long_as_it_says() -> None:
    markov = bandwidth("markov", states=[1e6, 2e6, 4e6], hold=2.0)
    steps = path(markov, 20_000.0, every_s=0.001)
    held = [end - at for (at, _), (end, _) in itertools.pairwise(steps)]
    assert statistics.mean(held) == pytest.approx(2.0, rel=0.05)
    for state in (1e6, 2e6, 4e6):
        occupied = sum(h for h, (_, rate) in zip(held, steps, strict=False) if rate == state)
        assert occupied / sum(held) == pytest.approx(1 / 3, abs=0.03)


def test_a_mahimahi_trace_counts_every_slot_once_and_loops(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("0\n10\n10\n150\n200\n")
    spec = bandwidth("mahimahi", file="t")
    slot = 12_000 / 0.1
    window = path(spec, 0.6, base_dir=tmp_path)
    assert sampled(window, 0.1, 6) == pytest.approx([3 * slot, 2 * slot] * 3)


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=50).map(sorted), st.sampled_from([0.01, 0.1, 0.3]))
def test_a_mahimahi_trace_carries_exactly_its_slots(slots: list[int], every_s: float) -> None:
    slots = [*slots, 2100]
    with _trace("\n".join(map(str, slots))) as directory:
        spec = bandwidth("mahimahi", file="t")
        rounds = 10 * 2.1
        steps = path(spec, rounds, every_s=every_s, base_dir=directory)
    assert carried_bits(steps, rounds) == pytest.approx(10 * len(slots) * 12_000)


@contextlib.contextmanager
def _trace(text: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "t").write_text(text)
        yield Path(directory)


def test_a_csv_holds_between_rows_and_starts_over(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("seconds,bps\n0,1e6\n\n1,2000000 # evening\n2.5,3e6\n")
    steps = path(bandwidth("csv", file="t"), 6.0, base_dir=tmp_path)
    assert steps == [(0.0, 1e6), (1.0, 2e6), (2.5, 3e6), (4.0, 1e6), (5.0, 2e6)]


@pytest.mark.parametrize(
    ("kind", "text", "complaint"),
    [
        ("mahimahi", "1\n2\nx\n", "t:3: cannot read 'x'"),
        ("mahimahi", "5\n4\n", "t:2: the time 4 runs backwards"),
        ("mahimahi", "-1\n", "t:1: the time -1 runs backwards"),
        ("mahimahi", "", "no slot later than 0 ms"),
        ("mahimahi", "0\n0\n", "no slot later than 0 ms"),
        ("csv", "0,1\n0,2\n", "t:2: the time 0 does not rise"),
        ("csv", "0,1\n1;2\n", "t:2: cannot read '1;2'"),
        ("csv", "0,1\n1,-2\n", "t:2: cannot read '1,-2'"),
        ("csv", "0,1\n1,nan\n", "t:2: cannot read '1,nan'"),
        ("csv", "s,bps\n", "no rows"),
    ],
)
def test_a_bad_trace_is_refused_with_file_and_line(
    tmp_path: Path, kind: str, text: str, complaint: str
) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(FabricError) as caught:
        rates(bandwidth(kind, file="t"), every_s=0.1, random=Random(0), base_dir=tmp_path)
    assert complaint in str(caught.value)
    assert str(tmp_path / "t") in str(caught.value)


def test_a_missing_trace_is_said(tmp_path: Path) -> None:
    with pytest.raises(FabricError, match="No such file"):
        rates(bandwidth("csv", file="none"), every_s=0.1, random=Random(0), base_dir=tmp_path)
