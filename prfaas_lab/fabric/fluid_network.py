"""A topology whose links are fluid: what `Fabric` is to an emulation, to a simulation.

A byte takes the path's delay on top of what its links take, and what is modelled of TCP (`fluid_tcp`)
bounds a transfer. Jitter, reordering, duplicates and corruption are not: they move single packets, which a
fluid does not have.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from functools import cache

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.fluid import Flow, Fluid, Piece
from prfaas_lab.fabric.fluid_tcp import DIAL_RTTS, goodput, loss, most, ramp_s
from prfaas_lab.fabric.fluid_transfer import Direction, Path, Transfer
from prfaas_lab.fabric.plan import directions, plan
from prfaas_lab.fabric.shape import ACHIEVABLE, FRAME_BYTES, Counters, Shape
from prfaas_lab.spec.topology import Topology

_CONNECTIONS = 4
UNSHAPED_BYTES_PER_S = 1.25e9
"""Of a link without a rate: 10 Gbit/s."""


class FluidNetwork:
    """Made on the running loop. Nodes are engines, by name."""

    shaper = "fluid"
    reason = "simulated: links are fluid, shared max-min fairly"

    def __init__(self, topology: Topology, *, scale: float = 1.0, time_scale: float = 1.0) -> None:
        layout = plan(topology, "", scale=scale, time_scale=time_scale)
        self.topology, self.fluid = topology, Fluid()
        self.directions: tuple[Direction, ...] = tuple(layout.shapes)
        self.changes = 0
        """How often a shape was changed."""
        self._shapes, self._sites = dict(layout.shapes), layout.sites
        self._homes = {name: dc for dc in topology.datacenters for name in topology.engine_names(dc)}
        self.window_bytes = layout.window_bytes
        self.connections = dict.fromkeys(topology.datacenters, _CONNECTIONS)
        """TCP connections of each pair of engines, by where the sender is."""
        self._traffic: dict[Direction, list[float]] = {}
        self._greedy: dict[Direction, list[Flow]] = {}
        self._met: set[tuple[str, str]] = set()
        self.last: dict[tuple[str, str], Transfer] = {}
        """Of each pair, who came last to its line and is not sent."""
        self._loop = asyncio.get_running_loop()
        self._path = cache(self._find_path)
        self._hops = cache(lambda source, destination: directions(topology, source, destination))
        self.most = cache(self._most_of)
        self.delays = cache(self._delays_of)
        for direction in self.directions:
            self._apply(direction)
        for name, site in self._sites.items():
            if site.egress_bps is not None:
                self.fluid.resource(("egress", name), goodput(site.egress_bps))

    # -- as a fabric ------------------------------------------------------------------------------

    def path(self, source: str, destination: str) -> tuple[Direction, ...]:
        """The directions that bytes cross from one engine to another, in order."""
        hops: tuple[Direction, ...] = self._hops(self._homes[source], self._homes[destination])
        return hops

    def endpoint(self, source: str, destination: str) -> str:
        """What an engine dials. Raises FabricError when no chain of links joins them."""
        if self._homes[source] != self._homes[destination] and not self.path(source, destination):
            raise FabricError(f"no links lead from {source} to {destination}", remedy="add a link")
        return destination

    def shape(self, link: str, source: str) -> Shape:
        """The shape in force."""
        return self._shapes[link, source]

    def change(self, link: str, source: str, shape: Shape) -> float:
        """Change one direction in place; the loop time, at which it takes effect."""
        self._shapes[link, source] = shape
        self.changes += 1
        self.most.cache_clear()
        self.delays.cache_clear()
        self._apply((link, source))
        return self._loop.time()

    def check(self, link: str, source: str, shape: Shape) -> None:
        """Any shape will do; what of it is not modelled is said above."""

    def nominal_bps(self, link: str, source: str) -> float | None:
        """What one direction can carry alone: its rate, or less where the source's egress is capped."""
        limits = (self.shape(link, source).rate_bps, self._sites[source].egress_bps)
        return min((limit for limit in limits if limit is not None), default=None)

    def egress_bps(self, datacenter: str) -> float | None:
        """The cap on all that leaves a datacenter, in emulated units; None when there is none."""
        return self._sites[datacenter].egress_bps

    def counters(self, link: str, source: str) -> Counters:
        """Totals of one direction, headers included; nothing is ever dropped."""
        carried = math.ceil(self.fluid.carried_bytes((link, source)) / ACHIEVABLE)
        return Counters(
            bytes_total=carried,
            packets_total=math.ceil(carried / FRAME_BYTES),
            dropped_total=0,
            backlog_bytes=0,
        )

    def demand(self, link: str, source: str) -> tuple[float, bool]:
        """The bytes that engines got through one direction so far, headers included, and whether more of
        theirs waits for it; cross traffic is others' business."""
        direction, others = (link, source), _others((link, source))
        carried = self.fluid.carried_bytes(direction)
        if direction in self._greedy:
            carried -= self.fluid.carried_bytes(others)
        return carried / ACHIEVABLE, self.fluid.waits(direction, but=others)

    def retransmitted_segments(self, datacenter: str) -> None:
        """A fluid has no segments."""

    # -- cross traffic ----------------------------------------------------------------------------

    def start_traffic(self, link: str, source: str, traffic: float | str) -> float:
        """Competing traffic: UDP takes its rate off the link, TCP shares like one more transfer."""
        direction = (link, source)
        if isinstance(traffic, str):
            endless: list[Piece] = [(0.0, 2**62)]
            self.fluid.resource(_others(direction), math.inf)  # which tells its lane from those of engines
            flow = self.fluid.send((direction, _others(direction)), endless, lambda: None)
            self._greedy.setdefault(direction, []).append(flow)
        else:
            self._traffic.setdefault(direction, []).append(traffic)
            self._apply(direction)
        return self._loop.time()

    def stop_traffic(self, link: str, source: str, traffic: float | str) -> float:
        direction = (link, source)
        if isinstance(traffic, str):
            self.fluid.cancel(self._greedy[direction].pop())
        else:
            self._traffic[direction].remove(traffic)
            self._apply(direction)
        return self._loop.time()

    # -- transfers --------------------------------------------------------------------------------

    def send(
        self, source: str, destination: str, pieces: Iterable[Piece], on_arrived: Callable[[float], None]
    ) -> Transfer:
        """Send what an engine makes, piece after piece from now on; `on_arrived(back_s)` when the last
        byte lies at the other engine, which then takes `back_s` to say so."""
        path, made = self._path_between(source, destination), list(pieces)
        transfer = Transfer(self, (source, destination), path, on_arrived)
        if path.route:
            transfer.queue(made, self._first_ramp_s(source, destination, path, made))
        else:
            transfer.arrive(sum([seconds for seconds, _ in made]))
        return transfer

    def dial_s(self, source: str, destination: str, ends_s: float = 0.0) -> float:
        """What a pair that has never met takes to be connected, for who waits for it before there is
        anything to send: round trips, and what its two ends take; from now on they have met."""
        if not self._meet(source, destination):
            return 0.0
        path = self._path_between(source, destination)
        return ends_s + (DIAL_RTTS * sum(self.delays(path)) if path.route else 0.0)

    def _first_ramp_s(self, source: str, destination: str, path: Path, made: list[Piece]) -> float:
        """Of a pair's first transfer; its connections stay open."""
        return self._ramp_s(path, made) if self._meet(source, destination) else 0.0

    def _meet(self, source: str, destination: str) -> bool:
        """Whether a pair is connected now for the first time."""
        pair = source, destination
        if pair in self._met:
            return False
        self._met.add(pair)
        return True

    def _ramp_s(self, path: Path, made: list[Piece]) -> float:
        """What a new pair's connections lose: handshakes, and doubling each round trip up to the pace
        that the sender makes or the path carries."""
        making_s, size = sum(seconds for seconds, _ in made), sum(size for _, size in made)
        pace = min(self.fluid.share(path.route), self.most(path), size / making_s if making_s else math.inf)
        return ramp_s(pace, sum(self.delays(path)), self.connections[path.here])

    def _path_between(self, source: str, destination: str) -> Path:
        """Of two engines; the same for all of two sites, unless engines' own links have a rate."""
        here, there = self._homes[source], self._homes[destination]
        if self._sites[here].intra.rate_bps is None and self._sites[there].intra.rate_bps is None:
            return self._path("", here, "", there)
        return self._path(source, here, destination, there)

    def _find_path(self, source: str, here: str, destination: str, there: str) -> Path:
        hops, back = self._hops(here, there), self._hops(there, here)
        route: list[object] = []
        for engine, way, site in ((source, "out", here), (destination, "in", there)):
            if (rate_bps := self._sites[site].intra.rate_bps) is not None:
                self.fluid.resource((engine, way, "nic"), goodput(rate_bps))
                route.append((engine, way, "nic"))
        for direction in hops:
            if ("egress", direction[1]) not in route and self._sites[direction[1]].egress_bps is not None:
                route.append(("egress", direction[1]))
            route.append(direction)
        intra_s = self._sites[here].intra.delay_s + self._sites[there].intra.delay_s
        return Path(here=here, route=tuple(route), there=hops, back=back, intra_s=intra_s)

    def _delays_of(self, path: Path) -> tuple[float, float]:
        return (
            path.intra_s + sum(self._shapes[hop].delay_s for hop in path.there),
            path.intra_s + sum(self._shapes[hop].delay_s for hop in path.back),
        )

    def _most_of(self, path: Path) -> float:
        """Bytes/s of one transfer, as its connections' windows and the loss on its way allow."""
        kept = math.prod(1 - loss(self._shapes[hop]) for hop in path.there)
        return most(sum(self.delays(path)), kept, self.connections[path.here], self.window_bytes)

    def _apply(self, direction: Direction) -> None:
        rate_bps = self._shapes[direction].rate_bps
        nominal = UNSHAPED_BYTES_PER_S if rate_bps is None else goodput(rate_bps)
        taken = goodput(sum(self._traffic.get(direction, ())))
        self.fluid.resource(direction, max(0.0, nominal - taken))


def _others(direction: Direction) -> tuple[Direction, str]:
    """The resource that only TCP's cross traffic in a direction is on."""
    return direction, "others"
