"""Claims about fluid links between datacenters."""

from __future__ import annotations

import asyncio

import pytest

from prfaas_lab.fabric.fluid_network import FluidNetwork
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.spec.topology import Topology

TOPOLOGY = Topology.model_validate(
    {
        "name": "two",
        "datacenters": {
            "east": {"role": "prfaas", "engines": {"prefill": 1}},
            "west": {"role": "local", "engines": {"prefill": 1, "decode": 1}},
        },
        "links": {"wan": {"between": ["east", "west"], "rate": "100Mbit", "delay": "10ms"}},
    }
)
WAN = ("wan", "east")


def test_what_others_send_is_no_load_of_ours() -> None:
    async def main() -> list[tuple[float, bool]]:
        network, seen = FluidNetwork(TOPOLOGY), []
        network.start_traffic(*WAN, "tcp")
        await asyncio.sleep(1.0)
        seen.append(network.load(*WAN))
        network.send("east-p0", "west-d0", [(0.0, 10**9)], lambda back_s: None)
        await asyncio.sleep(1.0)
        seen.append(network.load(*WAN))
        network.stop_traffic(*WAN, "tcp")
        seen.append(network.load(*WAN))
        return seen

    alone, beside, after = run_virtual(main())
    assert alone == (0.0, False)
    assert beside == (pytest.approx(50e6), True)
    assert after == (pytest.approx(100e6), True)


def test_greedy_flows_of_several_events_may_overlap() -> None:
    async def main() -> float:
        network = FluidNetwork(TOPOLOGY)
        network.send("east-p0", "west-d0", [(0.0, 10**9)], lambda back_s: None)
        await asyncio.sleep(1.0)
        for act in (network.start_traffic, network.start_traffic, network.stop_traffic, network.stop_traffic):
            act(*WAN, "tcp")
        return network.load(*WAN)[0]

    assert run_virtual(main()) == pytest.approx(100e6)
