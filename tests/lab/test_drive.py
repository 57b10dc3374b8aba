"""Claims about the workload's driver, on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import Any

import pytest

from prfaas_lab.errors import LabError
from prfaas_lab.lab.drive import Driver
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.spec.scenario import Scenario
from prfaas_lab.workload.generate import generate
from prfaas_lab.workload.request import Request

ON_THE_SECOND = {"kind": "uniform", "rate": "1/s"}


class Drive:
    """One driven workload: when each request was sent, how many at once, how many were given up."""

    def __init__(self, *, service_s: float, arrivals: dict[str, Any], **scenario: Any) -> None:
        workload = {
            "arrivals": arrivals,
            "prompt": {"kind": "fixed", "tokens": 4},
            "output": {"kind": "fixed", "tokens": 1},
            "requests": scenario.pop("requests", None),
            "sessions": scenario.pop("sessions", None),
        }
        self.scenario = Scenario.model_validate(
            {"name": "drive", "topology": "none.yaml", "workload": workload, **scenario}
        )
        self.service_s = service_s
        self.sent_s: list[float] = []
        self.asked: list[Request] = []
        self.open = self.most_open = self.given_up = 0

    def run(self, meanwhile: Callable[[Driver], Any] = lambda driver: None) -> float:
        return run_virtual(self._run(meanwhile))

    async def _run(self, meanwhile: Callable[[Driver], Any]) -> float:
        loop = asyncio.get_running_loop()
        requests = generate(self.scenario.workload, seed=1, vocab_size=300, duration_s=self.scenario.duration)
        driver = Driver(self.scenario, requests, self._serve, Ledger(loop.time, 0.0))
        meanwhile(driver)
        await driver.run()
        return loop.time()

    async def _serve(self, request: Request) -> list[int]:
        self.asked.append(request)
        self.sent_s.append(asyncio.get_running_loop().time())
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(self.service_s)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            self.open -= 1
        return [7] * request.output_tokens


def test_requests_are_sent_when_they_are_due_however_long_serving_takes() -> None:
    drive = Drive(service_s=5.0, arrivals=ON_THE_SECOND, requests=8, duration="60s")
    ended_s = drive.run()
    assert drive.sent_s == pytest.approx([n + drive.sent_s[0] for n in range(8)])
    assert ended_s == pytest.approx(drive.sent_s[-1] + 5.0)
    assert drive.given_up == drive.open == 0


def test_a_closed_loop_never_has_more_in_flight_than_clients() -> None:
    arrivals = {"kind": "closed", "clients": 3, "think": "1s"}
    drive = Drive(service_s=2.0, arrivals=arrivals, duration="30s")
    ended_s = drive.run()
    assert drive.most_open == 3
    assert len(drive.sent_s) == 30
    assert ended_s <= 32.0


def test_a_closed_loop_stops_at_its_last_request() -> None:
    drive = Drive(service_s=1.0, arrivals={"kind": "closed", "clients": 4}, requests=10, duration="60s")
    drive.run()
    assert len(drive.sent_s) == 10


def test_stop_ends_the_arrivals_and_drains_what_was_sent() -> None:
    drive = Drive(service_s=3.0, arrivals=ON_THE_SECOND, duration="60s")

    def stop_soon(driver: Driver) -> None:
        asyncio.get_running_loop().call_later(4.5, driver.stop.set)

    ended_s = drive.run(stop_soon)
    assert drive.sent_s == pytest.approx([0, 1, 2, 3, 4])
    assert drive.given_up == 0
    assert ended_s == pytest.approx(drive.sent_s[-1] + 3.0)


def test_a_driver_that_is_cancelled_sends_no_more() -> None:
    drive = Drive(service_s=0.1, arrivals=ON_THE_SECOND, duration="20s")

    async def cancelled() -> None:
        driving = asyncio.ensure_future(drive._run(lambda driver: None))
        await asyncio.sleep(3.5)
        driving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await driving
        await asyncio.sleep(5)

    run_virtual(cancelled())
    assert drive.sent_s == pytest.approx([0, 1, 2, 3])


def test_what_keeps_requests_from_coming_ends_the_run() -> None:
    drive = Drive(service_s=100, arrivals=ON_THE_SECOND, duration="20s")

    def requests() -> Iterator[Request]:
        yield from islice(generate(drive.scenario.workload, seed=1, vocab_size=300, duration_s=20), 3)
        raise LabError("the trace is torn")

    async def driven() -> None:
        loop = asyncio.get_running_loop()
        await Driver(drive.scenario, requests(), drive._serve, Ledger(loop.time, 0.0)).run()

    with pytest.raises(ExceptionGroup) as torn:
        run_virtual(driven())
    assert torn.group_contains(LabError, match="torn")
    assert len(drive.sent_s) == drive.given_up == 3


@pytest.mark.parametrize("arrivals", [ON_THE_SECOND, {"kind": "closed", "clients": 4}])
def test_what_does_not_drain_in_time_is_given_up(arrivals: dict[str, Any]) -> None:
    drive = Drive(service_s=1e6, arrivals=arrivals, requests=4, duration="10s", drain_timeout="20s")
    drive.run()
    assert drive.given_up == 4
    assert drive.open == 0


CHAT = {"kind": "chat", "turns": 3, "think": "2s", "system": {"kind": "fixed", "tokens": 5}}


def test_each_turn_asks_after_the_answer_with_all_that_was_said() -> None:
    drive = Drive(service_s=1.0, arrivals={"kind": "uniform", "rate": "0.001/s"}, sessions=CHAT, requests=3)
    drive.run()
    first, second, third = drive.asked
    assert (first.prompt_tokens, second.prompt_tokens, third.prompt_tokens) == (9, 14, 19)
    assert second.prompt[:10] == (*first.prompt, 7)
    assert third.prompt[:15] == (*second.prompt, 7)
    assert all(later - earlier > 1.0 for earlier, later in pairwise(drive.sent_s))


def test_a_tree_asks_all_its_branches_at_once() -> None:
    tree = {"kind": "tree", "depth": 3, "branches": 2}
    drive = Drive(service_s=1.0, arrivals={"kind": "uniform", "rate": "0.001/s"}, sessions=tree, requests=7)
    assert drive.run() == pytest.approx(3.0)
    assert drive.most_open == 4
    assert len({request.prompt[:5] for request in drive.asked[1:]}) == 1


def test_no_turn_begins_after_the_duration_or_a_stop() -> None:
    drive = Drive(service_s=3.0, arrivals=ON_THE_SECOND, sessions={**CHAT, "turns": 50}, duration="20s")
    ended_s = drive.run()
    assert max(drive.sent_s) <= 20.0 < ended_s <= 23.0
    assert drive.given_up == drive.open == 0
    stopped = Drive(service_s=3.0, arrivals=ON_THE_SECOND, sessions={**CHAT, "turns": 50}, duration="60s")
    stopped.run(lambda driver: asyncio.get_running_loop().call_later(9.5, driver.stop.set))
    assert max(stopped.sent_s) <= 9.5


def test_clients_of_a_closed_loop_play_whole_sessions() -> None:
    arrivals = {"kind": "closed", "clients": 2}
    drive = Drive(service_s=1.0, arrivals=arrivals, sessions={**CHAT, "think": "0s"}, requests=11)
    drive.run()
    assert drive.most_open == 2
    assert len(drive.asked) == len({request.id for request in drive.asked}) == 11
