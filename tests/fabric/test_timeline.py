"""Fluctuations and events on a clock that the tests set: what holds when several bear on a link."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.shape import Shape
from prfaas_lab.fabric.timeline import Change, Observed, ShapeChange, Timeline, TrafficChange
from prfaas_lab.fabric.timeline_player import TimelinePlayer
from prfaas_lab.lab.virtual_time import VirtualTimeLoop
from prfaas_lab.spec.scenario import Event, Fluctuation

EAST, WEST = ("wan", "east"), ("wan", "west")
BASE = Shape(rate_bps=100e6, delay_s=0.01)


def fluctuation(**terms: Any) -> Fluctuation:
    return Fluctuation.model_validate({"link": "wan", "source": "east", **terms})


def event(**terms: Any) -> Event:
    return Event.model_validate({"link": "wan", "source": "east", **terms})


def timeline(
    *, fluctuations: Sequence[Fluctuation] = (), events: Sequence[Event] = (), **options: Any
) -> Timeline:
    return Timeline({EAST: BASE, WEST: BASE}, fluctuations, events, **options)


def play(line: Timeline, until_s: float, observed: Observed | None = None) -> list[Change]:
    """Every change until then, made exactly when it is due."""
    changes = line.advance(0.0, observed or Observed())
    while line.next_due() <= until_s:
        changes += line.advance(line.next_due(), observed or Observed())
    return changes


def rates_in_time(changes: list[Change]) -> list[tuple[float, float | None]]:
    return [(c.due_s, c.shape.rate_bps) for c in changes if isinstance(c, ShapeChange)]


STEPS = fluctuation(
    bandwidth={"kind": "steps", "steps": [("0s", "80Mbit"), ("2s", "60Mbit"), ("4s", "40Mbit")]}
)


def test_a_fluctuation_replaces_the_rate_and_nothing_else() -> None:
    changes = play(timeline(fluctuations=[STEPS]), 10.0)
    assert rates_in_time(changes) == [(0.0, 80e6), (2.0, 60e6), (4.0, 40e6)]
    assert all(isinstance(c, ShapeChange) and c.shape.delay_s == 0.01 for c in changes)


def test_an_event_overrides_the_fluctuation_until_it_is_over() -> None:
    squeeze = event(at="1s", set={"rate": "10Mbit"}, lasts="2s")
    changes = play(timeline(fluctuations=[STEPS], events=[squeeze]), 10.0)
    assert rates_in_time(changes) == [(0.0, 80e6), (1.0, 10e6), (3.0, 60e6), (4.0, 40e6)]


def test_an_outage_wins_over_everything_and_keeps_the_queue_its_room() -> None:
    events = [event(at="1s", outage="3.5s"), event(at="2s", set={"rate": "10Mbit"}, lasts="1s")]
    changes = [
        c for c in play(timeline(fluctuations=[STEPS], events=events), 10.0) if isinstance(c, ShapeChange)
    ]
    during = [c.shape for c in changes if 1.0 <= c.due_s < 4.5]
    assert during
    assert {shape.rate_bps for shape in during} == {0.0}
    assert during[0].queue_bytes == Shape(rate_bps=80e6, delay_s=0.01).limit_bytes
    assert (changes[-1].due_s, changes[-1].shape) == (4.5, Shape(rate_bps=40e6, delay_s=0.01))


def test_outages_that_overlap_end_with_the_last() -> None:
    events = [event(at="1s", outage="2s"), event(at="2s", outage="3s")]
    assert rates_in_time(play(timeline(events=events), 10.0)) == [(1.0, 0.0), (5.0, 100e6)]


def test_a_later_event_overrides_an_earlier_one_key_by_key() -> None:
    events = [
        event(at="1s", set={"rate": "50Mbit", "delay": "20ms"}, lasts="4s"),
        event(at="2s", set={"rate": "30Mbit"}, lasts="1s"),
    ]
    shapes = [(c.due_s, c.shape) for c in play(timeline(events=events), 10.0) if isinstance(c, ShapeChange)]
    assert [(at, shape.rate_bps, shape.delay_s) for at, shape in shapes] == [
        (1.0, 50e6, 0.02), (2.0, 30e6, 0.02), (3.0, 50e6, 0.02), (5.0, 100e6, 0.01),
    ]  # fmt: skip


def test_an_event_without_a_source_bears_on_both_directions() -> None:
    both = Event.model_validate({"link": "wan", "at": "1s", "set": {"delay": "40ms"}})
    changes = play(timeline(events=[both]), 10.0)
    assert [(c.link, c.source) for c in changes] == [EAST, WEST]


def test_a_fluctuation_without_a_source_gives_both_directions_one_path() -> None:
    ou = Fluctuation.model_validate(
        {"link": "wan", "bandwidth": {"kind": "ou", "mean": 5e7, "deviation": 1e7, "relaxation": 1}}
    )
    changes = play(timeline(fluctuations=[ou]), 2.0)
    by_source = {s: [(c.due_s, c.shape) for c in changes if c.source == s] for s in ("east", "west")}  # type: ignore[union-attr]
    assert by_source["east"] == by_source["west"]
    assert len(by_source["east"]) == 21


def test_an_event_waits_for_its_count_of_requests() -> None:
    line = timeline(events=[event(after_requests=3, set={"rate": "10Mbit"}, lasts="1s")])
    assert line.advance(5.0, Observed(requests=2)) == []
    assert line.waits
    assert rates_in_time(line.advance(6.0, Observed(requests=3))) == [(6.0, 10e6)]
    assert not line.waits
    assert rates_in_time(line.advance(9.0, Observed(requests=9))) == [(7.0, 100e6)]


def test_an_event_waits_for_bytes_in_flight_on_its_link() -> None:
    line = timeline(events=[event(during_transfer=True, outage="1s")])
    assert line.advance(1.0, Observed(transferring=frozenset({"other"}))) == []
    assert rates_in_time(line.advance(2.0, Observed(transferring=frozenset({"wan"})))) == [(2.0, 0.0)]


def test_cross_traffic_starts_and_stops() -> None:
    events = [event(at="1s", cross_traffic="20Mbit", lasts="2s"), event(at="2s", cross_traffic="tcp")]
    changes = play(timeline(events=events, scale=0.1), 10.0)
    assert all(isinstance(c, TrafficChange) for c in changes)
    assert [(c.due_s, c.traffic, c.starts) for c in changes if isinstance(c, TrafficChange)] == [
        (1.0, 2e6, True), (2.0, "tcp", True), (3.0, 2e6, False),
    ]  # fmt: skip


def test_scales_shrink_rates_and_stretch_times() -> None:
    events = [event(at="1s", set={"delay": "20ms", "queue": "1MB"}, lasts="1s")]
    changes = play(timeline(fluctuations=[STEPS], events=events, scale=0.1, time_scale=2.0), 20.0)
    shapes = [(c.due_s, c.shape.rate_bps, c.shape.delay_s) for c in changes if isinstance(c, ShapeChange)]
    assert shapes == [(0.0, 4e6, 0.01), (2.0, 4e6, 0.04), (4.0, 3e6, 0.01), (8.0, 2e6, 0.01)]


def test_who_comes_late_gets_one_change_due_when_the_first_was() -> None:
    line = timeline(fluctuations=[STEPS])
    assert rates_in_time(line.advance(5.0)) == [(0.0, 40e6)]
    assert line.next_due() == math.inf


def test_what_changes_nothing_is_not_a_change() -> None:
    flat = fluctuation(bandwidth={"kind": "square", "high": "9Mbit", "low": "9Mbit", "period": "1s"})
    assert len(play(timeline(fluctuations=[flat]), 10.0)) == 1


def test_what_is_set_by_hand_holds_over_everything_and_the_last_word_per_key_counts() -> None:
    line = timeline(fluctuations=[STEPS])
    line.advance(0.0)
    line.add(event(at=0, set={"rate": "30Mbit"}), 1.0)
    line.add(event(at=0, set={"delay": "5ms"}), 1.5)
    line.add(event(at=0, set={"rate": "20Mbit"}), 2.5)
    changes = play(line, 10.0)
    assert rates_in_time(changes) == [(1.0, 30e6), (1.5, 30e6), (2.5, 20e6)]
    assert changes[-1].shape.delay_s == 0.005


def test_an_outage_by_hand_ends_by_itself() -> None:
    line = timeline()
    line.advance(0.0)
    line.add(event(at=0, outage="2s"), 3.0)
    assert rates_in_time(play(line, 10.0)) == [(3.0, 0.0), (5.0, 100e6)]


def test_a_link_that_does_not_exist_is_said_with_those_that_do() -> None:
    with pytest.raises(FabricError, match="no such direction") as caught:
        timeline(events=[event(link="lan", at="1s", outage="1s")])
    assert "wan from east" in str(caught.value)


def test_a_shaper_can_refuse_events_before_the_run() -> None:
    line = timeline(events=[event(at="1s", set={"corrupt": "1%"})])
    assert [(d, shape.corrupt) for d, shape in line.possible_shapes()] == [(EAST, 0.01)]


EVENTS = st.lists(
    st.builds(
        lambda at, effect, lasts: event(at=at, **effect, **({} if "outage" in effect else {"lasts": lasts})),
        st.floats(0, 10),
        st.sampled_from([{"outage": 2.0}, {"set": {"rate": 1e6}}, {"set": {"delay": 0.1, "loss": 0.5}}]),
        st.floats(0.001, 10),
    ),
    max_size=6,
)


@given(EVENTS, st.lists(st.floats(0, 25), max_size=10).map(sorted))
def test_however_it_is_stepped_it_comes_to_the_same_and_ends_as_it_began(
    events: list[Event], looks: list[float]
) -> None:
    exact, coarse = timeline(events=events), timeline(events=events)
    shape_exact = shape_coarse = BASE
    for now_s in [*looks, 100.0]:
        while exact.next_due() <= now_s:
            for change in exact.advance(exact.next_due()):
                shape_exact = change.shape if isinstance(change, ShapeChange) else shape_exact
        for change in coarse.advance(now_s):
            shape_coarse = change.shape if isinstance(change, ShapeChange) else shape_coarse
        assert shape_exact == shape_coarse
    assert shape_exact == BASE


# -- the player, in virtual time ---------------------------------------------------------------


def run_virtually(line: Timeline, *, change_takes_s: float, requests: Sequence[float] = ()) -> list[Any]:
    reports: list[Any] = []

    async def apply(change: Change) -> float:
        await asyncio.sleep(change_takes_s)
        return asyncio.get_running_loop().time()

    async def submit(player: TimelinePlayer, started_at: float) -> None:
        for number, at_s in enumerate(requests, 1):
            await asyncio.sleep(started_at + at_s - asyncio.get_running_loop().time())
            player.observe(Observed(requests=number))

    async def main() -> None:
        await asyncio.sleep(7.0)
        player = TimelinePlayer(
            line, apply=apply, report=lambda change, at_s: reports.append((change.due_s, at_s))
        )
        started_at = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            group.create_task(player.play(started_at))
            group.create_task(submit(player, started_at))

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
    return reports


def test_changes_are_made_on_time_and_their_lateness_never_adds_up() -> None:
    sine = fluctuation(bandwidth={"kind": "steps", "steps": [(i / 10, 1e6 * (i + 1)) for i in range(100)]})
    reports = run_virtually(timeline(fluctuations=[sine]), change_takes_s=0.002)
    assert len(reports) == 100
    for i, (due_s, at_s) in enumerate(reports):
        assert due_s == pytest.approx(i / 10)
        assert at_s == pytest.approx(due_s + 0.002)


def test_the_player_reacts_at_once_to_what_it_is_told() -> None:
    line = timeline(events=[event(after_requests=2, outage="1s")])
    reports = run_virtually(line, change_takes_s=0.0, requests=[3.0, 4.5, 6.0])
    assert reports == [(pytest.approx(4.5), pytest.approx(4.5)), (pytest.approx(5.5), pytest.approx(5.5))]


def test_a_player_without_end_makes_what_befalls_and_tells_when_it_has() -> None:
    made: list[tuple[float, float | None]] = []

    async def apply(change: Change) -> float:
        await asyncio.sleep(0.25)
        assert isinstance(change, ShapeChange)
        made.append((asyncio.get_running_loop().time(), change.shape.rate_bps))
        return asyncio.get_running_loop().time()

    async def interfere() -> None:
        loop = asyncio.get_running_loop()
        player = TimelinePlayer(timeline(), apply=apply, report=lambda change, at_s: None)
        playing = asyncio.create_task(player.play(loop.time(), endless=True))
        await asyncio.sleep(3)
        await player.befall(event(at=0, set={"rate": "20Mbit"}))
        assert made == [(loop.time(), 20e6)] == [(3.25, 20e6)]
        playing.cancel()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(interfere())
