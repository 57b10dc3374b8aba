"""Claims about a request's way, with engines that follow a script instead of processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from msgspec.structs import replace

from prfaas_lab.errors import EngineError
from prfaas_lab.lab.engines import Ended, Engine, OpenOrder, Tell
from prfaas_lab.lab.orders import HANDOVER_BYTES, DecodeOrder, EngineTask, PrefillOrder, RedirectOrder
from prfaas_lab.lab.service import Service
from prfaas_lab.lab.stages import Followed
from prfaas_lab.metrics.handover import violations
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.router import DatacenterView, PathView, Plan, policy
from prfaas_lab.workload.request import Request

TOKEN_BYTES, STATE_BYTES = 10, 100


class ScriptedEngines:
    """Both ends of a hand-over in one: decode waits for the transfer that prefill makes."""

    def __init__(
        self, *, received_bytes: int | None = None, die_at: str = "", hang_at: str = "", held_tokens: int = 0,
        wire_share: float = 1.0,
    ) -> None:  # fmt: skip
        self.received_bytes, self.die_at, self.hang_at = received_bytes, die_at, hang_at
        self.held_tokens, self.wire_share = held_tokens, wire_share
        self.arrived = asyncio.Event()
        self.open_orders: list[str] = []
        self.sent_bytes = 0
        self.followed = Followed()

    def begin(self, path: str, order: EngineTask, tell: Tell, ended: Ended) -> OpenOrder:
        return self.followed.follow(self.stages(path, order), tell, ended, self.never)

    async def never(self) -> None:
        raise AssertionError("nobody asks for an order back")

    async def stages(self, path: str, order: EngineTask) -> AsyncGenerator[dict[str, Any], None]:
        self.open_orders.append(path)
        try:
            script = self._decode(order) if isinstance(order, DecodeOrder) else self._prefill(order)
            async for stage in script:
                if stage["stage"] == self.die_at:
                    raise EngineError("went away in the middle of an order", where=path)
                if stage["stage"] == self.hang_at:
                    await asyncio.Event().wait()
                yield stage
        finally:
            self.open_orders.remove(path)

    async def _decode(self, order: DecodeOrder) -> AsyncGenerator[dict[str, Any], None]:
        yield {"stage": "reserved", "held_tokens": self.held_tokens}
        await self.arrived.wait()
        size = self.sent_bytes if self.received_bytes is None else self.received_bytes
        yield {"stage": "received", "bytes": size, "last_byte_at": 3.0}
        yield {"stage": "restored", "at": 4.0}
        for token in range(order.output_tokens):
            yield {"stage": "tokens", "tokens": [token]}

    async def _prefill(self, order: Any) -> AsyncGenerator[dict[str, Any], None]:
        tokens = len(order.prompt)
        yield {"stage": "prefilled", "started_at": 1.0, "finished_at": 2.0, "computed_tokens": tokens}
        self.sent_bytes = STATE_BYTES + TOKEN_BYTES * (tokens - order.held_tokens) + HANDOVER_BYTES
        self.arrived.set()
        yield {
            "stage": "sent",
            "bytes": self.sent_bytes,
            "wire_bytes": round(self.sent_bytes * self.wire_share),
            "first_byte_at": 1.5,
            "last_ack_at": 3.1,
            "retried": 0,
        }


class TwoDatacenters:
    def data_address(self, source: str, destination: str) -> tuple[str, int]:
        return "10.77.0.2", 7000

    def paths(self) -> tuple[PathView, ...]:
        return (PathView(source="east", destination="west", rate_bps=1e8, rtt_s=0.02),)


def deployment(script: Any) -> tuple[Service, dict[str, Engine], Ledger]:
    ticks = iter(range(10, 10_000))
    ledger = Ledger(lambda: float(next(ticks)), 0.0)
    places = {
        "east-p0": ("east", "prefill"), "west-p0": ("west", "prefill"),
        "west-d0": ("west", "decode"), "west-d1": ("west", "decode"),
    }  # fmt: skip
    engines = {
        name: Engine(name=name, datacenter=dc, role=role, client=script, capacity=4)
        for name, (dc, role) in places.items()
    }
    service = Service(
        engines=engines,
        datacenters=(DatacenterView(name="east", role="prfaas"), DatacenterView(name="west", role="local")),
        network=TwoDatacenters(),
        route=policy("threshold"),
        plan=Plan(threshold_tokens=8),
        expected_bytes=lambda tokens: STATE_BYTES + TOKEN_BYTES * tokens,
        ledger=ledger,
    )
    return service, engines, ledger


def request(tokens: int = 16) -> Request:
    return Request(id="r", arrival_s=0.0, prompt=(1,) * tokens, output_tokens=5)


async def idle(engines: dict[str, Engine], script: ScriptedEngines) -> bool:
    await asyncio.sleep(0)  # an order that was cancelled is closed on the loop's next round
    return not script.open_orders and all(
        not engine.orders and engine.waiting_tokens == 0 for engine in engines.values()
    )


async def test_a_served_request_gives_its_tokens_and_leaves_the_engines_idle() -> None:
    script = ScriptedEngines()
    service, engines, ledger = deployment(script)
    assert await service.serve(request()) == [0, 1, 2, 3, 4]
    assert (ledger.tally.completed, ledger.tally.failed, ledger.tally.in_flight) == (1, 0, 0)
    assert ledger.tally.requests["r"].prefill == "east-p0"
    assert await idle(engines, script)


async def test_a_caller_that_has_enough_ends_the_output_and_frees_the_engines() -> None:
    script, got = ScriptedEngines(), []

    def take(token: int) -> bool:
        got.append(token)
        return len(got) == 2

    service, engines, ledger = deployment(script)
    assert await service.serve(request(), take) == got == [0, 1]
    record = ledger.tally.requests["r"]
    assert (record.outcome, record.finish) == ("completed", "stop")
    assert "account" not in [violation.kind for violation in violations(record)]
    assert await idle(engines, script)


async def test_a_cancellations_message_is_the_reason_of_the_failure() -> None:
    service, _, ledger = deployment(ScriptedEngines(hang_at="tokens"))
    flight = asyncio.ensure_future(service.serve(request()))
    for _ in range(20):
        await asyncio.sleep(0)
    flight.cancel("the client left")
    with pytest.raises(asyncio.CancelledError):
        await flight
    assert ledger.tally.requests["r"].failure_reason == "the client left"


async def test_what_decode_holds_is_not_to_cross_and_nothing_is_once_it_is_over() -> None:
    script = ScriptedEngines(held_tokens=12, hang_at="prefilled")
    service, _, _ = deployment(script)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(service.serve(request(16)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert "/prefill" in script.open_orders
        assert service.committed["east", "west"] == STATE_BYTES + TOKEN_BYTES * 4
        serving.cancel()
    assert service.committed["east", "west"] == 0

    service, _, _ = deployment(ScriptedEngines(held_tokens=12))
    assert await service.serve(request(16)) is not None
    assert service.committed["east", "west"] == 0


async def test_what_an_engine_that_drains_waits_for_is_the_first_that_each_sender_has_for_it() -> None:
    service, engines, _ = deployment(HandedBack(0, 0, 0, 0))
    sizes = (16, 20, 96, 10)  # one engine sends them, to two engines in turns
    serving = [asyncio.ensure_future(service.serve(replace(request(size), id=f"r{size}"))) for size in sizes]
    await asyncio.sleep(0)
    first, second = engines["west-d0"], engines["west-d1"]
    assert len(first.orders) == len(second.orders) == 2
    assert service.crossing_bytes(first) == STATE_BYTES + TOKEN_BYTES * 16
    assert service.crossing_bytes(second) == STATE_BYTES + TOKEN_BYTES * 20
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)
    assert service.crossing_bytes(first) == service.crossing_bytes(second) == 0


async def test_what_crosses_compressed_is_ahead_by_what_it_is_on_the_wire() -> None:
    service, _, _ = deployment(ScriptedEngines(wire_share=0.25))
    (path,) = service.view().paths
    assert await service.serve(request(16)) is not None
    service.committed["east", "west"] = 1000
    assert service.view().ahead_bytes(path) == pytest.approx(250, rel=0.02)


async def test_the_plan_in_force_when_a_request_arrives_decides() -> None:
    script = ScriptedEngines()
    service, _, ledger = deployment(script)
    service.plan = Plan(threshold_tokens=100)
    await service.serve(request(16))
    assert ledger.tally.requests["r"].prefill == "west-p0"


async def test_bytes_that_differ_from_the_layouts_prediction_fail_the_request() -> None:
    service, _, ledger = deployment(ScriptedEngines(received_bytes=1))
    assert await service.serve(request()) is None
    assert "the layout predicts" in ledger.tally.requests["r"].failure_reason


@pytest.mark.parametrize(
    ("dies", "stage"),
    [("reserved", "reserve"), ("prefilled", "prefill"), ("received", "transfer"), ("tokens", "decode")],
)
async def test_an_engine_that_dies_fails_the_request_at_its_stage_and_frees_the_other_end(
    dies: str, stage: str
) -> None:
    script = ScriptedEngines(die_at=dies)
    service, engines, ledger = deployment(script)
    assert await service.serve(request()) is None
    record = ledger.tally.requests["r"]
    assert (record.outcome, record.failure_stage) == ("failed", stage)
    assert await idle(engines, script)


@pytest.mark.parametrize("hangs", ["reserved", "prefilled", "received", "tokens"])
async def test_a_cancelled_request_is_accounted_for_and_frees_both_ends(hangs: str) -> None:
    script = ScriptedEngines(hang_at=hangs)
    service, engines, ledger = deployment(script)
    flight = asyncio.ensure_future(service.serve(request()))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not flight.done()
    flight.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flight
    assert (ledger.tally.failed, ledger.tally.in_flight) == (1, 0)
    assert await idle(engines, script)


async def test_no_engine_to_route_to_fails_the_request_with_the_reason() -> None:
    service, engines, ledger = deployment(ScriptedEngines())
    engines["west-d0"].alive = engines["west-d1"].alive = False
    assert await service.serve(request()) is None
    assert ledger.tally.requests["r"].failure_stage == "route"
    assert "no live decode engine" in ledger.tally.requests["r"].failure_reason


class HandedBack:
    """Engines that do nothing by themselves, and give back what they are asked for. The first that are to
    decode a request hold so much of its prompt; the others do not answer."""

    def __init__(self, *held_tokens: int) -> None:
        self._held_tokens = list(held_tokens)
        self.computed = False
        self.prefills: list[PrefillOrder] = []
        self.redirects: list[RedirectOrder] = []
        self.cancelled: list[str] = []

    def begin(self, path: str, order: EngineTask, tell: Tell, ended: Ended) -> OpenOrder:
        if isinstance(order, PrefillOrder):
            self.prefills.append(order)
        elif self._held_tokens:
            tell({"stage": "reserved", "held_tokens": self._held_tokens.pop(0)})
        return HandedBackOrder(self, path, tell)


class HandedBackOrder:
    def __init__(self, engines: HandedBack, path: str, tell: Tell) -> None:
        self._engines, self._path, self.tell = engines, path, tell

    def cancel(self) -> None:
        self._engines.cancelled.append(self._path)

    def withdraw(self) -> None:
        self.tell({"stage": "unsent"} if self._engines.computed else {"stage": "withdrawn", "since": 7.0})

    def redirect(self, order: RedirectOrder) -> None:
        self._engines.redirects.append(order)


@pytest.mark.parametrize("computed", [False, True])
async def test_what_moves_is_told_what_its_new_engine_holds_and_the_rest_is_to_cross(computed: bool) -> None:
    script = HandedBack(0 if computed else 12, 4)
    service, engines, ledger = deployment(script)
    serving = asyncio.ensure_future(service.serve(request(16)))
    await asyncio.sleep(0)
    (first,) = script.prefills
    assert (first.held_tokens, first.since) == (0 if computed else 12, None)
    if computed:
        script.computed = True
        told = {"stage": "prefilled", "started_at": 1.0, "finished_at": 2.0, "computed_tokens": 16}
        service._flights["r"].ends._orders["/prefill"].tell(told)  # type: ignore[attr-defined]
    engines["west-d0"].draining = True
    service.relieve(engines["west-d0"])
    assert [engine.name for engine in engines.values() if "r" in engine.orders] == ["east-p0", "west-d1"]
    assert service.committed["east", "west"] == STATE_BYTES + TOKEN_BYTES * 12
    assert ledger.tally.requests["r"].decode == "west-d1"
    if computed:
        (redirect,) = script.redirects
        assert redirect.held_tokens == 4
        assert script.prefills == [first]
        assert script.cancelled == ["/decode"]
    else:
        assert [(order.held_tokens, order.since) for order in script.prefills[1:]] == [(4, 7.0)]
        assert script.cancelled == ["/prefill", "/decode"]
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert service.committed["east", "west"] == 0
    assert not any(engine.orders or engine.waiting_tokens for engine in engines.values())
    assert not service._flights


async def test_a_request_that_is_given_up_before_its_new_engine_has_memory_leaves_nothing_to_cross() -> None:
    script = HandedBack(12)
    service, engines, ledger = deployment(script)
    serving = asyncio.ensure_future(service.serve(request(16)))
    await asyncio.sleep(0)
    engines["west-d0"].draining = True
    service.relieve(engines["west-d0"])
    assert service.committed["east", "west"] == STATE_BYTES + TOKEN_BYTES * 16
    service.relieve(engines["west-d0"])
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert ledger.tally.requests["r"].failure_stage == "reserve"
    assert service.committed["east", "west"] == 0


async def test_what_came_before_a_conversion_was_given_up_goes_on_where_it_was() -> None:
    script = HandedBack(0)
    service, engines, ledger = deployment(script)
    serving = asyncio.ensure_future(service.serve(request(16)))
    await asyncio.sleep(0)
    service.relieve(engines["west-d0"])  # it drains no more
    assert [order.since for order in script.prefills] == [None, 7.0]
    assert script.cancelled == ["/prefill"]
    assert ledger.tally.requests["r"].decode == "west-d0"
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
