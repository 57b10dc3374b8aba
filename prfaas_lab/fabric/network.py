"""`up`: a topology as a running network, taken down again whatever happens."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric import namespaces
from prfaas_lab.fabric.build import Direction, build, demolish
from prfaas_lab.fabric.egress import check_egress
from prfaas_lab.fabric.lan import check_intra
from prfaas_lab.fabric.netem import NetemShaper
from prfaas_lab.fabric.ownership import Ownership
from prfaas_lab.fabric.plan import DATA_PORT, Node, Plan, directions, plan
from prfaas_lab.fabric.probe import choose_shaper, probe
from prfaas_lab.fabric.probes import Way
from prfaas_lab.fabric.relay import RelayShaper
from prfaas_lab.fabric.relay_plan import loopback_octet, plan_relay
from prfaas_lab.fabric.shape import Counters, LinkControl, LinkEnd, LinkEnds, Shape, Shaper
from prfaas_lab.fabric.tcp_counters import TcpCounters
from prfaas_lab.fabric.tun import TunShaper
from prfaas_lab.spec.topology import Topology

_SHAPERS: dict[str, Callable[[int], Shaper]] = {
    "netem": lambda seed: NetemShaper(),
    "tun": lambda seed: TunShaper(seed=seed),
}


class Fabric:
    """A network that is up. Every method may be called from any thread."""

    def __init__(
        self, topology: Topology, shaper: LinkControl, shapes: dict[Direction, Shape],
        nodes: dict[str, Node], *, reason: str, doors: dict[tuple[str, str], str],
        ways: dict[Direction, Way], egress_bps: dict[str, float | None],
    ) -> None:  # fmt: skip
        self.topology, self.nodes = topology, nodes
        self.shaper, self.reason = shaper.name, reason
        self.directions: tuple[Direction, ...] = tuple(shapes)
        self._shaper, self._shapes, self._changing = shaper, dict(shapes), threading.Lock()
        self.changes = 0
        """How often a shape was changed."""
        self._doors, self._ways, self._egress_bps = doors, ways, egress_bps
        self._tcp = {node.name: TcpCounters(node.netns) for node in nodes.values() if node.netns}

    # -- reaching --------------------------------------------------------------------------------

    def path(self, source: str, destination: str) -> tuple[Direction, ...]:
        """The directions that packets cross from one node to another, in order."""
        here, there = self.nodes[source].datacenter, self.nodes[destination].datacenter
        return directions(self.topology, here, there)

    def endpoint(self, source: str, destination: str) -> str:
        """The IPv4 address that node `source` dials (port DATA_PORT) to reach node `destination`.

        Raises FabricError when no chain of links joins them.
        """
        here, there = self.nodes[source], self.nodes[destination]
        if here.datacenter == there.datacenter:
            return there.address
        if not self.path(source, destination):
            raise FabricError(f"no links lead from {source} to {destination}", remedy="add a link")
        return self._doors.get((here.datacenter, destination), there.address)

    def socket(self, node: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """An IPv4 socket inside a node's namespace, for a process outside it."""
        return namespaces.socket_in(self.nodes[node].netns, socket.AF_INET, kind)

    def way(self, link: str, source: str) -> Way:
        """How to measure one direction of a link: from gateway to gateway, over no other link."""
        return self._ways[self._known(link, source)]

    def far_end(self, link: str, source: str) -> str:
        """The datacenter at the other end of a link."""
        one, other = self.topology.links[link].between
        return other if source == one else one

    # -- shaping ---------------------------------------------------------------------------------

    def shape(self, link: str, source: str) -> Shape:
        """The shape in force."""
        return self._shapes[self._known(link, source)]

    def check(self, link: str, source: str, shape: Shape) -> None:
        """Raises FabricError when this network cannot give a direction such a shape."""
        _check_shape(self._shaper, *self._known(link, source), shape)

    def change(self, link: str, source: str, shape: Shape) -> float:
        """Change one direction in place; the monotonic time by which it had taken effect."""
        direction = self._known(link, source)
        with self._changing:
            effective_at = self._shaper.change(link, source, shape)
            self._shapes[direction] = shape
            self.changes += 1
            return effective_at

    def egress_bps(self, datacenter: str) -> float | None:
        """The cap on all that leaves a datacenter, in emulated units; None when there is none."""
        return self._egress_bps[datacenter]

    def nominal_bps(self, link: str, source: str) -> float | None:
        """What one direction can carry alone: its rate, or less where the source's egress is capped."""
        limits = (self.shape(link, source).rate_bps, self.egress_bps(source))
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def shaper_pid(self) -> int | None:
        """The process that carries the packets; None when the kernel does."""
        return self._shaper.pid

    # -- counting --------------------------------------------------------------------------------

    def counters(self, link: str, source: str) -> Counters:
        """Totals of one direction since the network came up."""
        return self._shaper.counters(*self._known(link, source))

    def retransmitted_segments(self, datacenter: str) -> int | None:
        """TCP segments that a datacenter's nodes have sent again since the network came up. The kernel
        counts them per namespace, so this sums over all links that leave the datacenter. None when the
        nodes have no namespaces of their own (relay)."""
        counted = [tcp for name, tcp in self._tcp.items() if self.nodes[name].datacenter == datacenter]
        return sum(tcp.retransmitted for tcp in counted) if counted else None

    def close(self) -> None:
        """Let go of the files that are kept open for counting."""
        for counters in self._tcp.values():
            counters.close()

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
    layout = plan(topology, f"pl-{run_id}-", scale=scale, time_scale=time_scale)
    with contextlib.ExitStack() as stack:
        bring_up = _relayed if chosen == "relay" else _in_namespaces
        fabric = bring_up(topology, layout, chosen, reason, seed, ownership, stack)
        stack.callback(fabric.close)
        yield fabric


def _in_namespaces(
    topology: Topology, layout: Plan, chosen: str, reason: str, seed: int, ownership: Ownership,
    stack: contextlib.ExitStack,
) -> Fabric:  # fmt: skip
    shaper = _SHAPERS[chosen](seed)
    _check(layout, shaper)
    stack.callback(demolish, layout)
    stack.callback(shaper.close)
    build(layout, shaper, ownership)
    return Fabric(
        topology,
        shaper,
        layout.shapes,
        layout.nodes,
        reason=reason,
        doors={},
        ways={way: _way(*ends) for link in layout.links for way, ends in _both_ways(link)},
        egress_bps={name: site.egress_bps for name, site in layout.sites.items()},
    )


def _relayed(
    topology: Topology, layout: Plan, chosen: str, reason: str, seed: int, ownership: Ownership,
    stack: contextlib.ExitStack,
) -> Fabric:  # fmt: skip
    shaper = RelayShaper(seed=seed)
    _check(layout, shaper)
    octet = stack.enter_context(loopback_octet())
    relayed = plan_relay(topology, octet, DATA_PORT)
    stack.callback(shaper.close)
    shaper.serve(relayed.routes, layout.shapes)
    if shaper.pid is not None:
        ownership.claim_process(shaper.pid)
    return Fabric(
        topology,
        shaper,
        layout.shapes,
        relayed.nodes,
        reason=reason,
        doors=relayed.doors,
        ways=relayed.ways,
        egress_bps=dict.fromkeys(topology.datacenters),
    )


def _both_ways(link: LinkEnds) -> list[tuple[Direction, tuple[LinkEnd, LinkEnd]]]:
    one, other = link.ends
    return [((link.name, one.datacenter), (one, other)), ((link.name, other.datacenter), (other, one))]


def _way(source: LinkEnd, destination: LinkEnd) -> Way:
    there = destination.address.partition("/")[0]
    return Way(
        source=lambda: namespaces.socket_in(source.netns, socket.AF_INET, socket.SOCK_STREAM),
        destination=lambda: namespaces.socket_in(destination.netns, socket.AF_INET, socket.SOCK_STREAM),
        listen=(there, 0),
        dial=(there, 0),
        bind=source.address.partition("/")[0],
    )


def _check(layout: Plan, shaper: LinkControl) -> None:
    """Refuse what cannot be emulated, before anything is made."""
    for (link, source), shape in layout.shapes.items():
        _check_shape(shaper, link, source, shape)
    for name, site in layout.sites.items():
        check_intra(name, site.intra, shaper.name)
        check_egress(name, site.egress_bps, shaper.name)


def _check_shape(shaper: LinkControl, link: str, source: str, shape: Shape) -> None:
    try:
        shaper.check(shape)
    except FabricError as error:
        where = f"link {link} from {source}"
        raise FabricError(error.what, where=where, remedy=error.remedy) from error
