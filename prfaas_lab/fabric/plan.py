"""The address plan: which namespaces, interfaces, addresses and routes a topology needs. Pure."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass

from prfaas_lab.fabric.shape import LinkEnd, LinkEnds, Shape
from prfaas_lab.spec.topology import Topology

DATA_PORT = 7000
"""Where every node takes KVCache, on its own address."""
LAN_INTERFACE = "lan0"
ENGINE_INTERFACE = "eth0"
LAN_PREFIX = 16
_RETRY_S, _LEAST_RETRY_S = 0.2, 0.005
"""Linux waits at least so long for an acknowledgement; engines may wait longer than the other for a CPU."""
_LANS = ipaddress.IPv4Address("10.64.0.0")
_WANS = ipaddress.IPv4Address("10.63.0.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A gateway or an engine: where it lives and how it is reached."""

    name: str
    datacenter: str
    netns: str | None
    """Its network namespace; None under the relay, where all share the machine's own."""
    address: str
    """IPv4 address that it listens on, without prefix length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A way from a gateway to another datacenter's LAN."""

    network: str
    via: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One datacenter on the machine."""

    gateway: Node
    engines: tuple[Node, ...]
    routes: tuple[Route, ...]
    intra: Shape
    """Of every link between an engine and the gateway."""
    egress_bps: float | None
    """Cap on everything that leaves over the WAN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that will be made, decided before anything is."""

    sites: dict[str, Site]
    links: tuple[LinkEnds, ...]
    shapes: dict[tuple[str, str], Shape]
    """Of each (link, source), in emulated units."""
    window_bytes: int
    """What a socket must be able to hold so that one stream fills the longest path."""
    retry_s: float | None
    """The least time after which TCP sends again what was not acknowledged, stretched like all time; None
    where time is not, and the kernel's own holds."""

    @property
    def nodes(self) -> dict[str, Node]:
        """Engines and gateways by name; a gateway has the name of its datacenter."""
        return {node.name: node for site in self.sites.values() for node in (site.gateway, *site.engines)}


def plan(topology: Topology, prefix: str, *, scale: float = 1.0, time_scale: float = 1.0) -> Plan:
    """Where everything goes: LANs are 10.(64+i).0.0/16 with the gateway first, links 10.63.x.y/30."""
    links = tuple(_ends(topology, name, i, prefix) for i, name in enumerate(topology.links))
    shapes = {
        (name, source): Shape.of(link.direction(source), scale=scale, time_scale=time_scale)
        for name, link in topology.links.items()
        for source in link.between
    }
    sites = {
        name: Site(
            gateway=_node(prefix, name, name, lan + 1),
            engines=tuple(
                _node(prefix, e, name, lan + 2 + i) for i, e in enumerate(topology.engine_names(name))
            ),
            routes=_routes(topology, name, {link.name: link for link in links}),
            intra=Shape.of(topology.datacenters[name].intra, scale=scale, time_scale=time_scale),
            egress_bps=_scaled(topology.datacenters[name].egress, scale / time_scale),
        )
        for name, lan in _lans(topology).items()
    }
    return Plan(
        sites=sites,
        links=links,
        shapes=shapes,
        window_bytes=window_bytes(topology, shapes),
        retry_s=None if time_scale == 1.0 else max(_RETRY_S * time_scale, _LEAST_RETRY_S),
    )


def window_bytes(topology: Topology, shapes: dict[tuple[str, str], Shape]) -> int:
    """Twice the largest bandwidth-delay product of any path, queues included, within 4-256 MiB."""
    largest = 0.0
    for source in topology.datacenters:
        for destination in topology.datacenters:
            hops = directions(topology, source, destination) + directions(topology, destination, source)
            if not hops:
                continue  # inside a datacenter no path is long
            delay_s = sum(shapes[hop].delay_s + shapes[hop].jitter_s for hop in hops)
            rates = [rate for hop in hops if (rate := shapes[hop].rate_bps)]
            largest = max(largest, (min(rates) if rates else 10e9) * (delay_s + 0.02) / 8)
    return min(max(math.ceil(2 * largest), 4 * 2**20), 256 * 2**20)


def directions(topology: Topology, source: str, destination: str) -> tuple[tuple[str, str], ...]:
    """The (link, source) directions that packets take between two datacenters; () if there is no way."""
    try:
        path = topology.path(source, destination)
    except LookupError:
        return ()
    hops, here = [], source
    for name in path:
        hops.append((name, here))
        here = _far_end(topology, name, here)
    return tuple(hops)


def _lans(topology: Topology) -> dict[str, ipaddress.IPv4Address]:
    return {name: _LANS + (i << 16) for i, name in enumerate(topology.datacenters)}


def _node(prefix: str, name: str, datacenter: str, address: ipaddress.IPv4Address) -> Node:
    return Node(name=name, datacenter=datacenter, netns=f"{prefix}{name}", address=str(address))


def _routes(topology: Topology, name: str, links: dict[str, LinkEnds]) -> tuple[Route, ...]:
    """One route to each other datacenter that can be reached: over the first link of the path."""
    routes = []
    for other, lan in _lans(topology).items():
        hops = directions(topology, name, other)
        if hops:
            far = next(end for end in links[hops[0][0]].ends if end.datacenter != name)
            routes.append(Route(network=f"{lan}/{LAN_PREFIX}", via=far.address.partition("/")[0]))
    return tuple(routes)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _ends(topology: Topology, name: str, index: int, prefix: str) -> LinkEnds:
    one, other = topology.links[name].between
    first = _WANS + 4 * index + 1

    def end(datacenter: str, offset: int) -> LinkEnd:
        return LinkEnd(
            datacenter=datacenter,
            netns=f"{prefix}{datacenter}",
            interface=f"wan{index}",
            address=f"{first + offset}/30",
        )

    return LinkEnds(name=name, ends=(end(one, 0), end(other, 1)))


def _far_end(topology: Topology, link: str, near: str) -> str:
    one, other = topology.links[link].between
    return other if near == one else one
