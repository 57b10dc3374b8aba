"""Claims about simulated engines of one machine: what they send keeps the pace at which they compute."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from made_up import PROFILE

from prfaas_lab.engine.cores import Cores
from prfaas_lab.fabric.fluid_network import FluidNetwork
from prfaas_lab.lab.simulate import Simulation, simulate
from prfaas_lab.lab.simulated_sharing import PartedTransfer
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.spec.load import load_scenario, load_topology

ROOT = Path(__file__).parents[2]
PAIR = ("prfaas-east-p0", "local-west-d0")
MACHINE = "machine: {source: a test, cores: %s, order: %s, restore: %s}\n"


def test_parts_leave_as_slowly_as_a_shared_core_lets_them_be_made() -> None:
    """Two seconds of computing take four while another engine computes too."""

    async def main() -> float:
        topology = load_topology(ROOT / "topologies" / "two-datacenters.yaml")
        network, cores, loop = FluidNetwork(topology), Cores(1), asyncio.get_running_loop()
        network.dial_s(*PAIR)
        for _ in range(2):
            cores.call_at(2.0, lambda: None)
        arrived: asyncio.Future[float] = loop.create_future()
        pieces = [(1.5, 100_000), (0.5, 50_000)]
        PartedTransfer(network, cores, PAIR, pieces, lambda back_s: arrived.set_result(loop.time() + back_s))
        return await arrived

    assert run_virtual(main()) == pytest.approx(4.02, abs=1e-3)


def test_a_transfer_that_is_given_up_never_arrives() -> None:
    async def main() -> bool:
        network = FluidNetwork(load_topology(ROOT / "topologies" / "two-datacenters.yaml"))
        cores, arrived = Cores(1), list[float]()
        transfer = PartedTransfer(network, cores, PAIR, [(1.0, 100_000)], arrived.append)
        await asyncio.sleep(0.5)
        transfer.cancel()
        await asyncio.sleep(5.0)
        return bool(arrived)

    assert not run_virtual(main())


def test_a_pair_connects_once_and_engines_side_by_side_never() -> None:
    async def main() -> list[float]:
        network = FluidNetwork(load_topology(ROOT / "topologies" / "two-datacenters.yaml"))
        return [network.dial_s(*PAIR), network.dial_s(*PAIR), network.dial_s("local-west-p0", PAIR[1])]

    first, again, beside = run_virtual(main())
    assert first == pytest.approx(3 * 0.02, abs=1e-3)
    assert (again, beside) == (0.0, 0.0)


def simulated(folder: Path, machine: str) -> dict[str, dict[str, float]]:
    """The hand-over of every request of bursty."""
    folder.mkdir()
    (folder / "profile.yaml").write_text(PROFILE + machine)
    resolved = load_scenario(ROOT / "scenarios" / "bursty.yaml")
    simulate(resolved, Simulation(out=folder / "run", profile=folder / "profile.yaml"))
    rows = map(msgspec.json.decode, (folder / "run" / "requests.jsonl").read_bytes().splitlines())
    found = {row["id"]: row for row in rows}
    assert all(row["outcome"] == "completed" and not row["violations"] for row in found.values())
    return {name: row["handover"] for name, row in found.items()}


def test_few_cores_make_prefills_longer_and_many_leave_them_as_they_were(tmp_path: Path) -> None:
    alone = simulated(tmp_path / "alone", "")
    many = simulated(tmp_path / "many", MACHINE % (3, "0s", "0s"))
    few = simulated(tmp_path / "few", MACHINE % (1, "0s", "0s"))
    for name, legs in alone.items():
        assert many[name]["prefill_ms"] == pytest.approx(legs["prefill_ms"], rel=1e-6)
        assert few[name]["prefill_ms"] >= legs["prefill_ms"] - 1e-6
    assert sum(legs["prefill_ms"] for legs in few.values()) > 1.2 * sum(
        legs["prefill_ms"] for legs in alone.values()
    )


def test_engines_take_a_while_to_be_connected_wherever_they_are(tmp_path: Path) -> None:
    machine = MACHINE % (3, "5ms", "7ms")
    before = simulated(tmp_path / "before", machine)
    legs = simulated(tmp_path / "legs", machine.replace("order:", "connect: 12ms, order:"))
    later = {name: legs[name]["queue_ms"] - before[name]["queue_ms"] for name in legs}
    assert later["r00000"] == pytest.approx(12.0)
    assert later["r00006"] == pytest.approx(12.0)
    assert later["r00001"] > 0.0, "it waited for the same connections"
    assert later["r00047"] == 0.0


def test_order_and_restoring_are_in_their_legs_and_the_first_of_a_pair_connects(tmp_path: Path) -> None:
    legs = simulated(tmp_path / "legs", MACHINE % (3, "5ms", "7ms"))
    assert min(each["queue_ms"] for each in legs.values()) == pytest.approx(5.0)
    assert min(each["restore_ms"] for each in legs.values()) == pytest.approx(7.0)
    assert legs["r00006"]["queue_ms"] == pytest.approx(5.0 + 60.0, abs=1.0)
