"""The ways between datacenters, as policies and engines must know them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

from prfaas_lab.fabric.plan import DATA_PORT
from prfaas_lab.fabric.shape import Shape
from prfaas_lab.lab.egress import Estimate
from prfaas_lab.router.values import PathView
from prfaas_lab.spec.topology import Topology
from prfaas_lab.transport.limits import PathHint


class Net(Protocol):
    """What must be known of a network, emulated or simulated."""

    topology: Topology
    changes: int
    """How often a shape was changed."""

    def path(self, source: str, destination: str) -> tuple[tuple[str, str], ...]: ...

    def endpoint(self, source: str, destination: str) -> str: ...

    def shape(self, link: str, source: str) -> Shape: ...

    def egress_bps(self, datacenter: str) -> float | None: ...


class Ways:
    """Reads the network that is up: addresses to dial, and how each path between datacenters is now."""

    def __init__(self, fabric: Net) -> None:
        self._fabric = fabric
        topology = fabric.topology
        self._pairs = [
            (source, destination)
            for source in topology.datacenters
            for destination in topology.datacenters
            if source != destination and _joined(topology, source, destination)
        ]
        engines = {name: next(iter(topology.engine_names(name))) for name in topology.datacenters}
        self._hops = {
            pair: (
                fabric.path(engines[pair[0]], engines[pair[1]]),
                fabric.path(engines[pair[1]], engines[pair[0]]),
            )
            for pair in self._pairs
        }
        self._known: dict[tuple[str, str], tuple[tuple[Shape, ...], PathView]] = {}
        self._estimates: dict[tuple[str, str], Estimate] = {}
        self._changes = -1
        """The network's, when the paths were last looked at; -1 while an estimate is news."""
        self._paths: tuple[PathView, ...] = ()

    def data_address(self, source: str, destination: str) -> tuple[str, int]:
        """Host and port to dial from one engine to reach another's receiver."""
        return self._fabric.endpoint(source, destination), DATA_PORT

    def paths(self) -> tuple[PathView, ...]:
        """The way from every datacenter to every other, as it is shaped now: KVCache crosses from PrfaaS
        to local ones, copies of cached prefixes in any direction."""
        changes = self._fabric.changes
        if changes != self._changes:
            self._changes = changes
            self._paths = tuple(self.path(source, destination) for source, destination in self._pairs)
        return self._paths

    def path(self, source: str, destination: str) -> PathView:
        """The narrowest rate on the way, and the delay there and back."""
        there, back = self._hops[source, destination]
        shapes = tuple(self._fabric.shape(*hop) for hop in (*there, *back))
        known = self._known.get((source, destination))
        if known is not None and known[0] == shapes:
            return known[1]
        rates = [shape.rate_bps for shape in shapes[: len(there)] if shape.rate_bps is not None]
        rate_bps = min(rates, default=None)
        view = _estimated(
            PathView(
                source=source,
                destination=destination,
                rate_bps=rate_bps,
                rtt_s=sum(shape.delay_s for shape in shapes),
                up=rate_bps != 0,
            ),
            self._estimates.get((source, destination)),
        )
        self._known[source, destination] = shapes, view
        return view

    def bottleneck(self, source: str, destination: str) -> tuple[str, str]:
        """The narrowest direction of a link on the way: its name, and the end that sends."""
        there, _ = self._hops[source, destination]
        return min(there, key=lambda hop: _rate_bps(self._fabric.shape(*hop)))

    def hint(self, source: str) -> PathHint | None:
        """What the transport of a datacenter's engines goes by: of all ways from there, the one that holds
        most; None when none has both a rate and a delay."""
        hints = []
        for way in self.paths():
            rates = [rate for rate in (way.rate_bps, self._fabric.egress_bps(source)) if rate is not None]
            if way.source == source and way.up and way.rtt_s and rates:
                pairs = self._pairs_of_engines(way)
                hints.append(PathHint(rate_bps=min(rates), rtt_s=way.rtt_s, pairs=pairs))
        return max(hints, key=lambda hint: hint.bdp_bytes, default=None)

    def _pairs_of_engines(self, way: PathView) -> int:
        """Who may send KVCache there, times who may receive it."""
        sites = self._fabric.topology.datacenters
        return max(1, sites[way.source].engines.prefill * sites[way.destination].engines.decode)

    def configured_bps(self, link: str, source: str) -> float | None:
        """The rate of one direction of a link, as it is now."""
        return self._fabric.shape(link, source).rate_bps

    def learn(self, source: str, destination: str, estimate: Estimate) -> None:
        """What the connections on the way between two datacenters tell now."""
        pair = source, destination
        if self._estimates.get(pair) != estimate:
            self._estimates[pair] = estimate
            self._known.pop(pair, None)
            self._changes = -1


def _rate_bps(shape: Shape) -> float:
    return math.inf if shape.rate_bps is None else shape.rate_bps


def _estimated(view: PathView, estimate: Estimate | None) -> PathView:
    if estimate is None:
        return view
    room_bps = view.rate_bps or estimate.available_bps
    return replace(
        view,
        utilization=min(1.0, estimate.throughput_bps / room_bps) if room_bps else 0.0,
        throughput_bps=estimate.throughput_bps,
        available_bps=estimate.available_bps,
        congested=estimate.congested,
        backlogged=estimate.backlogged,
    )


def _joined(topology: Topology, source: str, destination: str) -> bool:
    try:
        return bool(topology.path(source, destination))
    except LookupError:
        return False
