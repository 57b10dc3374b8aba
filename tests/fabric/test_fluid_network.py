"""Claims about fluid links between datacenters."""

from __future__ import annotations

import asyncio

import pytest

from prfaas_lab.fabric.fluid import Piece
from prfaas_lab.fabric.fluid_network import FluidNetwork
from prfaas_lab.fabric.fluid_transfer import Transfer
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.spec.topology import Topology

TOPOLOGY = Topology.model_validate(
    {
        "name": "two",
        "datacenters": {
            "east": {"role": "prfaas", "engines": {"prefill": 2}},
            "west": {"role": "local", "engines": {"prefill": 1, "decode": 1}},
        },
        "links": {"wan": {"between": ["east", "west"], "rate": "100Mbit", "delay": "10ms"}},
    }
)
WAN = ("wan", "east")


def test_what_others_send_is_no_load_of_ours() -> None:
    async def main() -> list[tuple[float, bool]]:
        network, seen = FluidNetwork(TOPOLOGY), []
        network.dial_s("east-p0", "west-d0")  # they have met, and need not ramp up
        network.start_traffic(*WAN, "tcp")
        await asyncio.sleep(1.0)
        seen.append(network.demand(*WAN))
        network.send("east-p0", "west-d0", [(0.0, 10**9)], lambda back_s: None)
        await asyncio.sleep(1.0)
        seen.append(network.demand(*WAN))
        network.stop_traffic(*WAN, "tcp")
        await asyncio.sleep(1.0)
        seen.append(network.demand(*WAN))
        return seen

    alone, beside, after = run_virtual(main())
    assert alone == (0.0, False)
    assert beside == (pytest.approx(50e6 / 8), True)
    assert after == (pytest.approx(beside[0] + 100e6 / 8), True)


def test_greedy_flows_of_several_events_may_overlap() -> None:
    async def main() -> float:
        network = FluidNetwork(TOPOLOGY)
        network.send("east-p0", "west-d0", [(0.0, 10**9)], lambda back_s: None)
        await asyncio.sleep(1.0)
        for act in (network.start_traffic, network.start_traffic, network.stop_traffic, network.stop_traffic):
            act(*WAN, "tcp")
        before, _ = network.demand(*WAN)
        await asyncio.sleep(1.0)
        return network.demand(*WAN)[0] - before

    assert run_virtual(main()) == pytest.approx(100e6 / 8)


class Line:
    """Transfers over the link, and when each arrived."""

    def __init__(self) -> None:
        self.network, self.arrived = FluidNetwork(TOPOLOGY), dict[str, float]()

    def send(self, name: str, pieces: list[Piece], source: str = "east-p0") -> Transfer:
        def done(back_s: float) -> None:
            self.arrived[name] = round(asyncio.get_running_loop().time(), 1)

        return self.network.send(source, "west-d0", pieces, done)


SECOND = round(100e6 * 0.956 / 8)
"""Bytes that the link carries in one."""


def test_a_pairs_transfers_go_one_after_another_and_pairs_share() -> None:
    async def main() -> dict[str, float]:
        line = Line()
        line.send("first", [(0.0, 2 * SECOND)])
        line.send("second", [(0.0, 2 * SECOND)])
        line.send("other", [(0.0, 2 * SECOND)], source="east-p1")
        await asyncio.sleep(100.0)
        return line.arrived

    arrived = run_virtual(main())
    assert arrived == {"first": pytest.approx(4, abs=0.3), "other": pytest.approx(4, abs=0.3),
                       "second": pytest.approx(6, abs=0.3)}  # fmt: skip


def test_what_was_made_while_it_waited_is_not_made_again() -> None:
    async def main() -> dict[str, float]:
        line = Line()
        line.send("first", [(0.0, 4 * SECOND)])
        line.send("second", [(3.0, SECOND), (3.0, SECOND)])
        await asyncio.sleep(100.0)
        return line.arrived

    assert run_virtual(main())["second"] == pytest.approx(6.1, abs=0.3)


def test_what_is_still_being_made_holds_nobody_up() -> None:
    async def main() -> dict[str, float]:
        line = Line()
        line.send("prefill", [(10.0, SECOND)])
        line.send("copy", [(0.0, SECOND)])
        await asyncio.sleep(100.0)
        return line.arrived

    arrived = run_virtual(main())
    assert arrived["copy"] < 2
    assert arrived["prefill"] == pytest.approx(10, abs=0.3)


@pytest.mark.parametrize("given_up", [0, 1], ids=["under way", "in line"])
def test_who_is_given_up_leaves_the_line(given_up: int) -> None:
    async def main() -> dict[str, float]:
        line = Line()
        transfers = [line.send(str(number), [(0.0, 2 * SECOND)]) for number in range(3)]
        await asyncio.sleep(1.0)
        transfers[given_up].cancel()
        await asyncio.sleep(100.0)
        assert not line.network.last
        return line.arrived

    arrived = run_virtual(main())
    assert str(given_up) not in arrived
    assert arrived["2"] == pytest.approx(5 if given_up == 0 else 4, abs=0.3)


def test_a_first_transfer_given_up_while_it_dials_holds_nobody_up() -> None:
    async def main() -> dict[str, float]:
        line = Line()
        first = line.send("first", [(0.0, SECOND)])
        line.send("second", [(0.0, SECOND)])
        first.cancel()
        await asyncio.sleep(100.0)
        return line.arrived

    assert run_virtual(main())["second"] == pytest.approx(1, abs=0.3)


def test_a_thousand_that_are_given_up_in_line_are_passed_over() -> None:
    async def main() -> dict[str, float]:
        line = Line()
        line.send("first", [(0.0, SECOND)])
        given_up = [line.send(str(number), [(0.0, SECOND)]) for number in range(1000)]
        line.send("last", [(0.0, SECOND)])
        for transfer in given_up:
            transfer.cancel()
        await asyncio.sleep(100.0)
        return line.arrived

    assert run_virtual(main()) == {"first": pytest.approx(1, abs=0.3), "last": pytest.approx(2, abs=0.3)}


def test_what_is_made_just_now_is_not_passed_by() -> None:
    """Prefills follow each other at sums of floats, which part by a hair."""

    async def main() -> list[str]:
        line = Line()
        line.send("first", [(0.0, 2 * SECOND)])
        line.send("second", [(0.1 + 0.2, SECOND)])
        await asyncio.sleep(0.3)
        line.send("third", [(0.0, SECOND)])
        await asyncio.sleep(100.0)
        return list(line.arrived)

    assert run_virtual(main()) == ["first", "second", "third"]
