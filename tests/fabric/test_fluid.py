"""Laws of fluid links, on virtual time."""

from __future__ import annotations

import asyncio
import itertools
import random
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas_lab.fabric import fluid as fluids
from prfaas_lab.fabric.fluid import Flow, Fluid, Piece
from prfaas_lab.fabric.fluid_lane import Lane
from prfaas_lab.lab.virtual_time import run_virtual

Start = tuple[float, tuple[str, ...], list[Piece]]


def play(
    capacities: dict[str, float],
    starts: list[Start],
    then: Callable[[Fluid], None] = lambda fluid: None,
    *,
    most: float = float("inf"),
) -> tuple[list[float], dict[str, float]]:
    """When each flow was sent, and what each resource had carried in the end."""

    async def main() -> tuple[list[float], dict[str, float]]:
        loop, fluid = asyncio.get_running_loop(), Fluid()
        for key, capacity in capacities.items():
            fluid.resource(key, capacity)
        ends = [loop.create_future() for _ in starts]
        for (at_s, route, pieces), end in zip(starts, ends, strict=True):
            loop.call_at(
                at_s, lambda route=route, pieces=pieces, end=end: fluid.send(
                    route, pieces, lambda: end.set_result(loop.time()), most=most
                ),
            )  # fmt: skip
        then(fluid)
        times = [await end for end in ends]
        return times, {key: fluid.carried_bytes(key) for key in capacities}

    return run_virtual(main())


def at_once(size: int) -> list[Piece]:
    return [(0.0, size)]


def test_one_transfer_takes_its_bytes_over_the_rate() -> None:
    assert play({"wan": 100.0}, [(1.0, ("wan",), at_once(1000))])[0] == [pytest.approx(11.0)]


def test_two_transfers_share_evenly_and_the_second_half_of_the_longer_runs_alone() -> None:
    ends, _ = play({"wan": 100.0}, [(0.0, ("wan",), at_once(1000)), (0.0, ("wan",), at_once(500))])
    assert ends == [pytest.approx(15.0), pytest.approx(10.0)]


def test_what_a_bottleneck_elsewhere_leaves_goes_to_the_others() -> None:
    """Max-min: the flow through both links gets 25 on the thin one, so the other gets 75."""
    starts = [(0.0, ("wide", "thin"), at_once(250)), (0.0, ("wide",), at_once(750))]
    ends, _ = play({"wide": 100.0, "thin": 25.0}, starts)
    assert ends == [pytest.approx(10.0), pytest.approx(10.0)]


def test_a_transfer_that_is_made_slower_than_the_link_ends_with_its_making() -> None:
    assert play({"wan": 100.0}, [(0.0, ("wan",), [(20.0, 1000)])])[0] == [pytest.approx(20.0)]


def test_a_transfer_that_is_made_faster_ends_when_the_link_has_carried_it() -> None:
    assert play({"wan": 100.0}, [(0.0, ("wan",), [(2.0, 1000)])])[0] == [pytest.approx(10.0)]


def test_the_state_that_comes_at_the_end_is_sent_after_the_rest() -> None:
    ends, _ = play({"wan": 100.0}, [(0.0, ("wan",), [(20.0, 1000), (0.0, 300)])])
    assert ends == [pytest.approx(23.0)]


def test_a_backlog_is_caught_up_once_there_is_room() -> None:
    """50 B/s are made for 20 s; the link stands still for the first 4 s, and carries 100 B/s after."""

    def open_later(fluid: Fluid) -> None:
        asyncio.get_running_loop().call_at(4.0, fluid.resource, "wan", 100.0)

    ends, carried = play({"wan": 0.0}, [(0.0, ("wan",), [(20.0, 1000)])], open_later)
    assert ends == [pytest.approx(20.0)]
    assert carried["wan"] == 1000


def test_slow_senders_keep_their_pace_and_the_fast_one_takes_the_rest() -> None:
    starts: list[Start] = [
        (0.0, ("wan",), [(10.0, 100)]),
        (0.0, ("wan",), [(10.0, 200)]),
        (0.0, ("wan",), at_once(700)),
    ]
    assert play({"wan": 100.0}, starts)[0] == [pytest.approx(10.0)] * 3


def test_a_window_or_loss_limits_one_flow_however_wide_the_link() -> None:
    assert play({"wan": 100.0}, [(0.0, ("wan",), at_once(100))], most=10.0)[0] == [pytest.approx(10.0)]


def test_a_capacity_that_changes_counts_from_that_moment() -> None:
    def halve(fluid: Fluid) -> None:
        asyncio.get_running_loop().call_at(5.0, fluid.resource, "wan", 50.0)

    assert play({"wan": 100.0}, [(0.0, ("wan",), at_once(1000))], halve)[0] == [pytest.approx(15.0)]


def test_a_flow_that_is_given_up_counts_what_it_sent_and_makes_room() -> None:
    async def main() -> tuple[float, float]:
        loop, fluid = asyncio.get_running_loop(), Fluid()
        fluid.resource("wan", 100.0)
        end = loop.create_future()
        gone = fluid.send(("wan",), at_once(10_000), lambda: pytest.fail("it was given up"))
        fluid.send(("wan",), at_once(500), lambda: end.set_result(loop.time()))
        loop.call_at(2.0, fluid.cancel, gone)
        return await end, fluid.carried_bytes("wan")

    ended, carried = run_virtual(main())
    assert ended == pytest.approx(6.0)
    assert carried == pytest.approx(600)


routes = st.sampled_from([("a",), ("b",), ("a", "b"), ("b", "c"), ("c",)])
pieces = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 2.0, 7.0]), st.integers(1, 5000)), min_size=1, max_size=3
)
flows = st.lists(st.tuples(st.floats(0, 10), routes, pieces), min_size=1, max_size=12)


@given(flows, st.tuples(*[st.floats(10, 1000)] * 3))
@settings(max_examples=80)
def test_bytes_are_conserved_and_no_flow_is_faster_than_its_route(
    starts: list[Start], capacities: tuple[float, float, float]
) -> None:
    rates = dict(zip("abc", capacities, strict=True))
    ends, carried = play(rates, [(at, route, list(made)) for at, route, made in starts])
    for (at_s, route, made), end_s in zip(starts, ends, strict=True):
        size, making_s = sum(b for _, b in made), sum(s for s, _ in made)
        least_s = max(making_s, size / min(rates[key] for key in route))
        assert end_s >= at_s + least_s * (1 - 1e-6) - 1e-6
    for key in rates:
        assert carried[key] == sum(sum(b for _, b in made) for _, route, made in starts if key in route)


@given(flows, st.tuples(*[st.floats(10, 1000)] * 3))
@settings(max_examples=40)
def test_no_link_carries_more_than_its_capacity(
    starts: list[Start], capacities: tuple[float, float, float]
) -> None:
    rates = dict(zip("abc", capacities, strict=True))
    seen: list[tuple[float, dict[str, float]]] = []

    def watch(fluid: Fluid) -> None:
        loop = asyncio.get_running_loop()

        def look() -> None:
            seen.append((loop.time(), {key: fluid.carried_bytes(key) for key in rates}))
            loop.call_later(0.7, look)

        look()

    play(rates, [(at, route, list(made)) for at, route, made in starts], watch)
    for (then, before), (now, after) in itertools.pairwise(seen):
        for key, rate in rates.items():
            assert -1e-3 <= after[key] - before[key] <= rate * (now - then) * (1 + 1e-6) + 1e-3


@given(flows, st.tuples(*[st.floats(10, 1000)] * 3))
@settings(max_examples=40)
def test_a_link_that_nobody_can_fill_changes_nothing_for_those_who_share_it(
    starts: list[Start], capacities: tuple[float, float, float]
) -> None:
    """Shares are found among those who could hold each other back, and among all to the same end."""
    rates = dict(zip("abc", capacities, strict=True))
    alone, _ = play(rates, [(at, route, list(made)) for at, route, made in starts])
    shared = [(at, (*route, "sea"), list(made)) for at, route, made in starts]
    together, carried = play({**rates, "sea": 1e9}, shared)
    assert together == pytest.approx(alone)
    assert carried["sea"] == sum(size for _, _, made in starts for _, size in made)


def test_what_the_last_flow_of_a_route_leaves_goes_to_those_of_another() -> None:
    """East is made at 40 B/s and over at 1 s, when west has 60 B/s of the shared link: then it has all."""
    starts: list[Start] = [(0.0, ("east", "wan"), [(1.0, 40)]), (0.0, ("west", "wan"), at_once(1000))]
    ends, _ = play({"east": 1e6, "west": 1e6, "wan": 100.0}, starts)
    assert ends == [pytest.approx(1.0), pytest.approx(10.4)]


def test_a_flow_that_is_given_up_makes_room_on_other_routes_too() -> None:
    async def main() -> float:
        loop, fluid = asyncio.get_running_loop(), Fluid()
        for key, capacity in {"east": 1e6, "west": 1e6, "wan": 100.0}.items():
            fluid.resource(key, capacity)
        end = loop.create_future()
        gone = fluid.send(("east", "wan"), at_once(10_000), lambda: pytest.fail("it was given up"))
        fluid.send(("west", "wan"), at_once(1000), lambda: end.set_result(loop.time()))
        loop.call_at(2.0, fluid.cancel, gone)
        return await end

    assert run_virtual(main()) == pytest.approx(11.0)


MOST = {("a",): 1e9, ("b",): 60.0, ("a", "b"): 150.0, ("b", "c"): 1e9, ("c",): 200.0}
given_up = st.lists(st.tuples(st.integers(0, 11), st.floats(0, 20)), max_size=4)
changes = st.lists(st.tuples(st.sampled_from("abc"), st.floats(10, 1000), st.floats(0, 20)), max_size=3)


@given(flows, st.tuples(*[st.floats(10, 1000)] * 3), given_up, changes)
@settings(max_examples=150)
def test_shares_found_nearby_are_those_found_over_all_lanes(
    starts: list[Start], capacities: tuple[float, float, float],
    cancels: list[tuple[int, float]], widths: list[tuple[str, float, float]],
) -> None:  # fmt: skip
    async def main() -> list[float]:
        loop, fluid, ends, begun = asyncio.get_running_loop(), Fluid(), dict[int, float](), dict[int, Flow]()
        for key, capacity in zip("abc", capacities, strict=True):
            fluid.resource(key, capacity)

        def begin(number: int, route: tuple[str, ...], made: list[Piece]) -> None:
            begun[number] = fluid.send(
                route, made, lambda: ends.update({number: loop.time()}), most=MOST[route]
            )

        def give_up(number: int) -> None:
            if number in begun and number not in ends:
                fluid.cancel(begun[number])

        for number, (at_s, route, made) in enumerate(starts):
            loop.call_at(at_s, begin, number, route, list(made))
        for number, at_s in cancels:
            loop.call_at(at_s, give_up, number)
        for key, capacity, at_s in widths:
            loop.call_at(at_s, fluid.resource, key, capacity)
        await asyncio.sleep(1e5)
        return [ends.get(number, -1.0) for number in range(len(starts))]

    nearby = run_virtual(main())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fluids, "joined", _all_lanes)
        assert nearby == pytest.approx(run_virtual(main()), rel=1e-6, abs=1e-6)


def _all_lanes(lane: Lane) -> list[Lane]:
    """All that can be reached over shared resources, full or not."""
    found, near = {lane}, [lane]
    for one in near:
        fresh = {other for resource in one.resources for other in resource.active} - found
        found |= fresh
        near += fresh
    return sorted(found, key=lambda one: one.number)


def test_windows_that_change_hold_for_what_is_under_way_too() -> None:
    async def main() -> float:
        loop, fluid = asyncio.get_running_loop(), Fluid()
        fluid.resource("wan", 100.0)
        end = loop.create_future()
        fluid.send(("wan",), at_once(500), lambda: end.set_result(loop.time()), most=50.0)
        loop.call_at(5.0, lambda: fluid.send(("wan",), at_once(1), lambda: None, most=25.0))
        return await end

    assert run_virtual(main()) == pytest.approx(15.0)


def test_what_is_over_is_let_go_while_others_are_under_way() -> None:
    async def main() -> int:
        loop, fluid = asyncio.get_running_loop(), Fluid()
        fluid.resource("wan", 1e9)
        seen = [weakref.ref(fluid.send(("wan",), [(2.0, 100)], lambda: None))]

        def go_on() -> None:
            seen.append(weakref.ref(fluid.send(("wan",), [(2.0, 100)], lambda: None)))

        for number in range(300):
            loop.call_at(float(number), go_on)
        await asyncio.sleep(299.5)
        return sum(flow() is not None for flow in seen)

    assert run_virtual(main()) < 30


def test_the_same_flows_give_the_same_times_to_the_last_bit() -> None:
    def once() -> list[float]:
        rng = random.Random(5)
        routes: list[tuple[str, ...]] = [("a",), ("a", "b"), ("b",)]
        starts: list[Start] = [
            (rng.random() * 10, rng.choice(routes), [(rng.random(), 1 + rng.randrange(999))])
            for _ in range(200)
        ]
        return play({"a": 500.0, "b": 200.0}, starts)[0]

    assert once() == once()
