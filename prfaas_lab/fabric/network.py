"""`up`: a topology as a running network, taken down again whatever happens."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric import namespaces
from prfaas_lab.fabric.build import Direction, build, demolish
from prfaas_lab.fabric.lan import check_intra
from prfaas_lab.fabric.netem import NetemShaper
from prfaas_lab.fabric.ownership import Ownership
from prfaas_lab.fabric.plan import Node, Plan, directions, plan
from prfaas_lab.fabric.probe import choose_shaper, probe
from prfaas_lab.fabric.probes import Way
from prfaas_lab.fabric.shape import Counters, Shape, Shaper
from prfaas_lab.fabric.tcp_counters import TcpCounters
from prfaas_lab.fabric.tun import TunShaper
from prfaas_lab.spec.topology import Topology

DATA_PORT = 7000
"""Where every node takes KVCache, on its own address."""

_SHAPERS: dict[str, Callable[[int], Shaper]] = {
    "netem": lambda seed: NetemShaper(),
    "tun": lambda seed: TunShaper(seed=seed),
}


class Fabric:
    """A network that is up. Every method may be called from any thread."""

    def __init__(
        self, topology: Topology, layout: Plan, shaper: Shaper, shapes: dict[Direction, Shape], reason: str
    ) -> None:
        self.topology = topology
        self.shaper, self.reason = shaper.name, reason
        self.nodes: dict[str, Node] = layout.nodes
        self.directions: tuple[Direction, ...] = tuple(shapes)
        self._sites, self._links = layout.sites, {link.name: link for link in layout.links}
        self._shaper, self._shapes = shaper, dict(shapes)
        self._changing = threading.Lock()
        self._tcp = {node.name: TcpCounters(node.netns) for node in self.nodes.values() if node.netns}

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
        if here.datacenter != there.datacenter and not self.path(source, destination):
            raise FabricError(f"no links lead from {source} to {destination}", remedy="add a link")
        return there.address

    def socket(self, node: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """An IPv4 socket inside a node's namespace, for a process outside it."""
        return namespaces.socket_in(self.nodes[node].netns, socket.AF_INET, kind)

    def way(self, link: str, source: str) -> Way:
        """How to measure one direction of a link: from gateway to gateway, over no other link."""
        destination = self.far_end(link, source)
        addresses = {end.datacenter: end.address.partition("/")[0] for end in self._links[link].ends}
        return Way(
            source=lambda: self.socket(source),
            destination=lambda: self.socket(destination),
            listen=addresses[destination],
            dial=addresses[destination],
            bind=addresses[source],
        )

    def far_end(self, link: str, source: str) -> str:
        """The datacenter at the other end of a link."""
        one, other = self.topology.links[link].between
        return other if source == one else one

    # -- shaping ---------------------------------------------------------------------------------

    def shape(self, link: str, source: str) -> Shape:
        """The shape in force."""
        return self._shapes[self._known(link, source)]

    def change(self, link: str, source: str, shape: Shape) -> float:
        """Change one direction in place; the monotonic time by which it had taken effect."""
        direction = self._known(link, source)
        with self._changing:
            self._shaper.change(link, source, shape)
            self._shapes[direction] = shape
            return time.monotonic()

    def egress_bps(self, datacenter: str) -> float | None:
        """The cap on all that leaves a datacenter, in emulated units; None when there is none."""
        return self._sites[datacenter].egress_bps

    def nominal_bps(self, link: str, source: str) -> float | None:
        """What one direction can carry alone: its rate, or less where the source's egress is capped."""
        limits = (self.shape(link, source).rate_bps, self.egress_bps(source))
        return min((limit for limit in limits if limit is not None), default=None)

    # -- counting --------------------------------------------------------------------------------

    def counters(self, link: str, source: str) -> Counters:
        """Totals of one direction since the network came up."""
        return self._shaper.counters(*self._known(link, source))

    def retransmitted_segments(self, datacenter: str) -> int:
        """TCP segments that a datacenter's nodes have sent again since the network came up. The kernel
        counts them per namespace, so this sums over all links that leave the datacenter."""
        return sum(
            counters.retransmitted
            for name, counters in self._tcp.items()
            if self.nodes[name].datacenter == datacenter
        )

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
    engine = _SHAPERS[chosen](seed)
    layout = plan(topology, f"pl-{run_id}-", scale=scale, time_scale=time_scale)
    _check(layout, engine)
    with contextlib.ExitStack() as stack:
        stack.callback(demolish, layout)
        stack.callback(engine.close)
        build(layout, engine, layout.shapes, ownership)
        fabric = Fabric(topology, layout, engine, layout.shapes, reason)
        stack.callback(fabric.close)
        yield fabric


def _check(layout: Plan, shaper: Shaper) -> None:
    """Refuse what cannot be emulated, before anything is made."""
    for (link, source), shape in layout.shapes.items():
        try:
            shaper.check(shape)
        except FabricError as error:
            where = f"link {link} from {source}"
            raise FabricError(error.what, where=where, remedy=error.remedy) from error
    for name, site in layout.sites.items():
        check_intra(name, site.intra, shaper.name)
