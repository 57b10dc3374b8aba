"""The address plan under the relay: every node, and every door to one, is a loopback address."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.plan import Node, directions
from prfaas_lab.fabric.probes import Way
from prfaas_lab.fabric.relay import RelayRoute
from prfaas_lab.spec.topology import Topology

MARK_PORT = 7999
"""Held on 127.x.255.254 by the run that has 127.x.0.0/16."""
Door = tuple[str, str]
"""(datacenter of the source, destination node)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayPlan:
    """Who is where, and which address leads to whom."""

    nodes: dict[str, Node]
    doors: dict[Door, str]
    ways: dict[tuple[str, str], Way]
    routes: tuple[RelayRoute, ...]


@contextlib.contextmanager
def loopback_octet() -> Iterator[int]:
    """A second octet of 127.x.y.z that no other run on this machine has, until exit."""
    with socket.socket() as mark:
        yield _marked_octet(mark)


def plan_relay(topology: Topology, octet: int, port: int) -> RelayPlan:
    """Addresses are handed out in order: nodes, a door for every (datacenter, node elsewhere), and for
    measuring a door and a target for every direction of every link."""
    addresses = _addresses(octet)
    nodes = {
        name: Node(name=name, datacenter=datacenter, netns=None, address=next(addresses))
        for datacenter in topology.datacenters
        for name in (datacenter, *topology.engine_names(datacenter))
    }
    doors: dict[Door, str] = {}
    routes: list[RelayRoute] = []
    for source in topology.datacenters:
        for node in nodes.values():
            there = directions(topology, source, node.datacenter)
            if there:
                doors[source, node.name] = next(addresses)
                back = directions(topology, node.datacenter, source)
                listen, target = (doors[source, node.name], port), (node.address, port)
                routes.append(RelayRoute(listen=listen, target=target, forward=there, backward=back))
    ways = {}
    for name, link in topology.links.items():
        for source, destination in itertools.permutations(link.between):
            listen, target = (next(addresses), port), (next(addresses), port)
            there, back = ((name, source),), ((name, destination),)
            routes.append(RelayRoute(listen=listen, target=target, forward=there, backward=back))
            ways[name, source] = Way(source=_tcp, destination=_tcp, listen=target, dial=listen)
    return RelayPlan(nodes=nodes, doors=doors, ways=ways, routes=tuple(routes))


def _marked_octet(mark: socket.socket) -> int:
    octets = list(range(64, 255))
    random.shuffle(octets)  # no part of any experiment: only which free number is taken
    for octet in octets:
        with contextlib.suppress(OSError):
            mark.bind((f"127.{octet}.255.254", MARK_PORT))
            return octet
    raise FabricError("every 127.x.0.0/16 is taken by another run", remedy="end one of them")


def _addresses(octet: int) -> Iterator[str]:
    for number in range(1, 255 * 256):
        yield f"127.{octet}.{number >> 8}.{number & 255}"
    raise FabricError("the topology is too large for the relay", remedy="use fewer engines, or run as root")


def _tcp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
