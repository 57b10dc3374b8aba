"""The address plan: decided before anything is made, and free of collisions."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas_lab.fabric.plan import directions, plan
from prfaas_lab.fabric.relay_plan import plan_relay
from prfaas_lab.fabric.shape import FRAME_BYTES, Shape
from prfaas_lab.spec.topology import Impairment, Topology


def topology(links: dict[str, Any], sites: int = 3, engines: int = 2) -> Topology:
    local = {"role": "local", "engines": {"prefill": engines, "decode": 1}}
    return Topology.model_validate(
        {"name": "t", "datacenters": {f"s{i}": local for i in range(sites)}, "links": links}
    )


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Any number of sites, linked at random; some may be out of reach."""
    sites = draw(st.integers(2, 6))
    ends = st.tuples(st.integers(0, sites - 1), st.integers(0, sites - 1)).filter(lambda e: e[0] != e[1])
    links = {
        f"l{i}": {"between": [f"s{a}", f"s{b}"], "delay": f"{draw(st.integers(0, 90))}ms"}
        for i, (a, b) in enumerate(draw(st.lists(ends, max_size=8)))
    }
    return topology(links, sites, draw(st.integers(1, 4)))


CHAIN = {
    "one": {"between": ["s0", "s1"], "delay": "10ms"},
    "two": {"between": ["s1", "s2"], "delay": "15ms"},
}


@given(topologies())
@settings(max_examples=50)
def test_every_address_is_given_once(world: Topology) -> None:
    made = plan(world, "pl-x-")
    addresses = [node.address for node in made.nodes.values()]
    addresses += [end.address.partition("/")[0] for link in made.links for end in link.ends]
    assert len(addresses) == len(set(addresses))
    netns = [node.netns for node in made.nodes.values()]
    assert len(netns) == len(set(netns))


@given(topologies())
@settings(max_examples=50)
def test_routes_lead_along_the_shortest_path_hop_by_hop(world: Topology) -> None:
    made = plan(world, "pl-x-")
    lans = {str(ipaddress.IPv4Interface(f"{s.gateway.address}/16").network): n for n, s in made.sites.items()}
    far_end = {end.address.partition("/")[0]: end.datacenter for link in made.links for end in link.ends}
    for source, destination in ((a, b) for a in made.sites for b in made.sites if a != b):
        here, hops = source, 0
        while here != destination:
            ways = {lans[route.network]: far_end[route.via] for route in made.sites[here].routes}
            if destination not in ways:
                assert directions(world, source, destination) == ()
                break
            here, hops = ways[destination], hops + 1
            assert hops <= len(made.sites), "a route goes in circles"


def test_directions_name_each_link_with_the_site_it_is_left_from() -> None:
    world = topology(CHAIN)
    assert directions(world, "s0", "s2") == (("one", "s0"), ("two", "s1"))
    assert directions(world, "s2", "s0") == (("two", "s2"), ("one", "s1"))
    assert directions(world, "s1", "s1") == ()


def test_one_window_fills_the_longest_path() -> None:
    fat = {"wan": {"between": ["s0", "s1"], "rate": "1Gbit", "delay": "100ms"}}
    made = plan(topology(fat, sites=2), "pl-x-")
    assert made.window_bytes >= 1e9 * 0.2 / 8
    assert plan(topology(fat, sites=2), "pl-x-", scale=0.001).window_bytes == 4 * 2**20


def test_scale_shrinks_rates_and_time_scale_stretches_delays() -> None:
    world = topology({"wan": {"between": ["s0", "s1"], "rate": "100Gbit", "delay": "10ms"}}, sites=2)
    shape = plan(world, "pl-x-", scale=0.001, time_scale=2.0).shapes["wan", "s0"]
    assert shape == Shape(rate_bps=50e6, delay_s=0.02)


@given(topologies())
@settings(max_examples=50)
def test_relay_doors_lead_where_the_links_do(world: Topology) -> None:
    relayed = plan_relay(world, 77, 7000)
    targets = {route.listen[0]: route for route in relayed.routes}
    listening = [route.listen[0] for route in relayed.routes] + [n.address for n in relayed.nodes.values()]
    assert len(listening) == len(set(listening))
    assert all(address.startswith("127.77.") for address in listening)
    for (source, node), door in relayed.doors.items():
        there = relayed.nodes[node]
        assert targets[door].target == (there.address, 7000)
        assert targets[door].forward == directions(world, source, there.datacenter)
        assert targets[door].backward == directions(world, there.datacenter, source)


@pytest.mark.parametrize("engines", [1, 2000])
def test_large_datacenters_fit_their_lan(engines: int) -> None:
    site = plan(topology({}, sites=1, engines=engines), "pl-x-").sites["s0"]
    lan = ipaddress.IPv4Interface(f"{site.gateway.address}/16").network
    assert all(ipaddress.IPv4Address(engine.address) in lan for engine in site.engines)
    assert len({engine.address for engine in site.engines}) == engines + 1


def test_a_queue_of_unknown_size_takes_as_long_to_empty_as_time_is_stretched() -> None:
    link = Impairment(rate=100e9, delay=0.01)
    real, fast = (Shape.of(link, scale=0.001, time_scale=stretch) for stretch in (1.0, 0.1))
    for shape in (real, fast):  # ten times the rate, a tenth of the time
        assert shape.limit_bytes == pytest.approx(2_625_000, abs=1)
    narrow = Shape.of(Impairment(rate=1e9, delay=0.01), scale=0.001, time_scale=0.1)
    assert narrow.limit_bytes == 64 * FRAME_BYTES
