"""The congestion signal of a simulation: what `watch_paths` learns from kernels, from the fluid network."""

from __future__ import annotations

import asyncio

from prfaas_lab.fabric.fluid_network import FluidNetwork
from prfaas_lab.lab.egress import Egress
from prfaas_lab.lab.watch_paths import Hop
from prfaas_lab.lab.ways import Ways
from prfaas_lab.transport.congestion import FULL


class SimulatedPaths:
    """Every way out of a PrfaaS datacenter, through its narrowest direction of a link."""

    def __init__(self, network: FluidNetwork, ways: Ways) -> None:
        self._network, self._ways = network, ways
        sites = network.topology.datacenters
        self._pairs = [
            (view.source, view.destination)
            for view in ways.paths()
            if sites[view.source].role == "prfaas" and sites[view.destination].role == "local"
        ]
        self._egress: dict[Hop, Egress] = {}
        self._before: dict[Hop, tuple[float, bool]] = {}
        """What had passed each direction at the last look, and whether more waited."""

    async def watch(self, interval_s: float) -> None:
        """For as long as it is left to run."""
        while True:
            await asyncio.sleep(interval_s)
            self.round(interval_s)

    def round(self, interval_s: float) -> None:
        """Look at every way once, so long after the last look. As connections tell it, a rate is the mean of
        the time in between, and what the link gives only where more waited at both its ends."""
        over: dict[Hop, list[tuple[str, str]]] = {}
        for pair in self._pairs:
            over.setdefault(self._ways.bottleneck(*pair), []).append(pair)
        for hop, pairs in over.items():
            passed_before, waited = self._before.get(hop, (0.0, False))
            passed_bytes, waits = self._before[hop] = self._network.demand(*hop)
            rate_bps, backlogged = 8 * (passed_bytes - passed_before) / interval_s, waited and waits
            nominal_bps = self._network.nominal_bps(*hop)
            full = backlogged and nominal_bps is not None and rate_bps > FULL * nominal_bps
            sample = {"throughput_bps": rate_bps, "backlogged": backlogged, "congested": full}
            estimate = self._egress.setdefault(hop, Egress()).observe([sample])
            for pair in pairs:
                self._ways.learn(*pair, estimate)
