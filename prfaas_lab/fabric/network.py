"""`up`: a topology as a running network, taken down again whatever happens."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric import interfaces, namespaces, sysctl
from prfaas_lab.fabric.netem import NetemShaper
from prfaas_lab.fabric.netlink import Netlink
from prfaas_lab.fabric.ownership import Ownership
from prfaas_lab.fabric.plan import (
    ENGINE_INTERFACE,
    LAN_INTERFACE,
    LAN_PREFIX,
    Node,
    Plan,
    Site,
    directions,
    plan,
)
from prfaas_lab.fabric.probe import choose_shaper, probe
from prfaas_lab.fabric.shape import Counters, Shape, Shaper
from prfaas_lab.fabric.tun import TunShaper
from prfaas_lab.spec.topology import Topology

DATA_PORT = 7000
"""Where every node takes KVCache, on its own address."""
Direction = tuple[str, str]
"""(link, source): the packets that leave datacenter `source` over `link`."""

_SHAPERS: dict[str, Callable[[int], Any]] = {
    "netem": lambda seed: NetemShaper(),
    "tun": lambda seed: TunShaper(seed=seed),
}


class Fabric:
    """A network that is up. Every method may be called from any thread."""

    def __init__(
        self, topology: Topology, layout: Plan, shaper: Shaper, shapes: dict[Direction, Shape],
        *, reason: str, scale: float, time_scale: float,
    ) -> None:  # fmt: skip
        self.topology, self.scale, self.time_scale = topology, scale, time_scale
        self.shaper, self.reason = shaper.name, reason
        self.nodes: dict[str, Node] = layout.nodes
        self.links = layout.links
        self.directions: tuple[Direction, ...] = tuple(shapes)
        self._shaper, self._shapes = shaper, dict(shapes)
        self._lock = threading.Lock()

    def path(self, source: str, destination: str) -> tuple[Direction, ...]:
        """The directions that packets cross from one node to another, in order."""
        here, there = self.nodes[source].datacenter, self.nodes[destination].datacenter
        return directions(self.topology, here, there)

    def endpoint(self, source: str, destination: str) -> str:
        """The IPv4 address that node `source` dials (port DATA_PORT) to reach node `destination`.

        Raises FabricError when no chain of links joins them.
        """
        here, there = self.nodes[source], self.nodes[destination]
        if here.datacenter != there.datacenter and not self.path(source, destination):
            raise FabricError(f"no links lead from {source} to {destination}", remedy="add a link")
        return there.address

    def socket(self, node: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """An IPv4 socket inside a node's namespace, for a process outside it."""
        return namespaces.socket_in(self.nodes[node].netns, socket.AF_INET, kind)

    def shape(self, link: str, source: str) -> Shape:
        """The shape in force."""
        return self._shapes[self._known(link, source)]

    def change(self, link: str, source: str, shape: Shape) -> float:
        """Change one direction in place; the monotonic time at which it had taken effect."""
        direction = self._known(link, source)
        with self._lock:
            self._shaper.change(link, source, shape)
            self._shapes[direction] = shape
            return time.monotonic()

    def counters(self, link: str, source: str) -> Counters:
        """Totals of one direction since the network came up."""
        return self._shaper.counters(*self._known(link, source))

    def _known(self, link: str, source: str) -> Direction:
        if (link, source) not in self._shapes:
            known = ", ".join(f"{link} from {source}" for link, source in self._shapes)
            raise FabricError(f"there is no link {link!r} from {source!r}", remedy=f"have: {known}")
        return link, source


@contextlib.contextmanager
def up(
    topology: Topology, *, run_id: str, ownership: Ownership, shaper: str = "auto",
    scale: float = 1.0, time_scale: float = 1.0, seed: int = 0,
) -> Iterator[Fabric]:  # fmt: skip
    """Bring a topology up, and down again at exit. Blocks: call it before the event loop starts.

    Everything is decided and checked before anything is made. Raises FabricError.
    """
    chosen, reason = choose_shaper(probe(), shaper)
    shapes = shapes_of(topology, scale=scale, time_scale=time_scale)
    engine = _SHAPERS[chosen](seed)
    for (link, source), shape in shapes.items():
        _check(engine, link, source, shape)
    layout = plan(topology, f"pl-{run_id}-", shapes)
    try:
        _make(layout, engine, shapes, ownership)
        yield Fabric(topology, layout, engine, shapes, reason=reason, scale=scale, time_scale=time_scale)
    finally:
        engine.close()
        for node in layout.nodes.values():
            if node.netns:
                namespaces.delete(node.netns)


def shapes_of(topology: Topology, *, scale: float = 1.0, time_scale: float = 1.0) -> dict[Direction, Shape]:
    """Every direction of every link, in emulated units."""
    return {
        (name, source): Shape.of(link.direction(source), scale=scale, time_scale=time_scale)
        for name, link in topology.links.items()
        for source in link.between
    }


def _check(shaper: Shaper, link: str, source: str, shape: Shape) -> None:
    try:
        shaper.check(shape)
    except FabricError as error:
        where = f"link {link} from {source}"
        raise FabricError(error.what, where=where, remedy=error.remedy) from error


def _make(layout: Plan, shaper: Shaper, shapes: dict[Direction, Shape], ownership: Ownership) -> None:
    for site in layout.sites.values():
        _make_site(site, layout.window_bytes, ownership)
    for link in layout.links:
        one, other = link.ends
        shaper.attach(link, shapes[link.name, one.datacenter], shapes[link.name, other.datacenter])
        pid = getattr(shaper, "pid", None)
        if pid is not None:
            ownership.claim_process(pid)
    for site in layout.sites.values():
        _route(site)


def _make_site(site: Site, window_bytes: int, ownership: Ownership) -> None:
    """A gateway with a bridge, and its engines around it."""
    gateway = site.gateway
    assert gateway.netns is not None
    namespaces.create(ownership.claim_namespace(gateway.netns))
    sysctl.router(gateway.netns, window_bytes)
    with Netlink(gateway.netns) as netlink:
        interfaces.set_up(netlink, "lo")
        interfaces.add_link(netlink, LAN_INTERFACE, "bridge")
        interfaces.add_address(netlink, LAN_INTERFACE, f"{gateway.address}/{LAN_PREFIX}")
        interfaces.set_up(netlink, LAN_INTERFACE)
        for number, engine in enumerate(site.engines):
            _make_engine(netlink, gateway, engine, f"e{number}", window_bytes, ownership)


def _make_engine(
    at_gateway: Netlink, gateway: Node, engine: Node, port: str, window_bytes: int, ownership: Ownership
) -> None:
    assert engine.netns is not None
    assert gateway.netns is not None
    namespaces.create(ownership.claim_namespace(engine.netns))
    sysctl.endpoint(engine.netns, window_bytes)
    interfaces.add_veth(at_gateway, (gateway.netns, port), (engine.netns, ENGINE_INTERFACE))
    interfaces.set_up(at_gateway, port, master=LAN_INTERFACE)
    with Netlink(engine.netns) as netlink:
        interfaces.set_up(netlink, "lo")
        interfaces.add_address(netlink, ENGINE_INTERFACE, f"{engine.address}/{LAN_PREFIX}")
        interfaces.set_up(netlink, ENGINE_INTERFACE)
        interfaces.add_route(netlink, "0.0.0.0/0", gateway.address)


def _route(site: Site) -> None:
    assert site.gateway.netns is not None
    with Netlink(site.gateway.netns) as netlink:
        for route in site.routes:
            interfaces.add_route(netlink, route.network, route.via, source=site.gateway.address)
