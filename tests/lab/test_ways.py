"""What engines are told of the ways that their KVCache takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prfaas_lab.fabric.fluid_network import FluidNetwork
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.lab.ways import Ways
from prfaas_lab.spec.topology import Topology
from prfaas_lab.transport.limits import PathHint


def network(link: dict[str, Any], **east: Any) -> FluidNetwork:
    topology = {
        "name": "two",
        "datacenters": {
            "east": {"role": "prfaas", "engines": {"prefill": 4}, **east},
            "west": {"role": "local", "engines": {"prefill": 3, "decode": 5}},
        },
        "links": {"wan": {"between": ["east", "west"], **link}},
    }
    return FluidNetwork(Topology.model_validate(topology))


def hint(link: dict[str, Any], **east: Any) -> PathHint | None:
    async def main() -> PathHint | None:
        return Ways(network(link, **east)).hint("east")

    return run_virtual(main())


def test_a_way_is_shared_by_every_pair_that_kvcache_crosses_between() -> None:
    assert hint({"rate": "10Gbit", "delay": "10ms"}) == PathHint(rate_bps=10e9, rtt_s=0.02, pairs=20)


def test_a_cap_on_egress_is_part_of_the_way() -> None:
    capped = hint({"rate": "10Gbit", "delay": "10ms"}, egress="350Mbit")
    assert capped == PathHint(rate_bps=350e6, rtt_s=0.02, pairs=20)
    assert hint({"delay": "10ms"}, egress="350Mbit") == capped


@pytest.mark.parametrize("link", [{"delay": "10ms"}, {"rate": "10Gbit"}], ids=["no rate", "no delay"])
def test_a_way_that_has_no_bdp_gives_no_hint(link: dict[str, Any]) -> None:
    assert hint(link) is None


def test_paths_are_the_same_until_a_link_changes_and_then_as_it_is() -> None:
    async def main() -> None:
        fluid = network({"rate": "10Gbit", "delay": "10ms"})
        ways = Ways(fluid)
        before = ways.paths()
        assert ways.paths() is before
        fluid.change("wan", "east", replace(fluid.shape("wan", "east"), rate_bps=1e9))
        after = {(path.source, path.destination): path.rate_bps for path in ways.paths()}
        assert after == {("east", "west"): 1e9, ("west", "east"): 10e9}

    run_virtual(main())
