"""What was placed on an instance that drains, and has not begun, is served by another: with real engines,
over real connections, in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import web
from made_up import Loopback

from prfaas_lab.lab.control_client import ControlClient
from prfaas_lab.lab.decode_role import DecodeRole
from prfaas_lab.lab.engines import Engine, OpenOrder
from prfaas_lab.lab.orders import (
    HANDOVER_BYTES,
    DecodeOrder,
    EngineOrder,
    EngineTask,
    Pace,
    PacedModel,
    PrefillOrder,
    RedirectOrder,
)
from prfaas_lab.lab.prefill_role import PrefillRole
from prfaas_lab.lab.service import Service
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.handover import check
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.model.profile import CacheCurve, Decode, PrefillCurve, Profile, StepCurve
from prfaas_lab.router import DatacenterView, Placement, Plan, View
from prfaas_lab.spec.scenario import EngineSettings, Model, TransportSettings
from prfaas_lab.workload.request import Request

ROLES: dict[str, Literal["prefill", "decode"]] = {
    "p0": "prefill", "p1": "prefill", "d0": "decode", "d1": "decode", "d2": "decode",
}  # fmt: skip
CHUNK = 128
WINDOW_BYTES = 2**16
"""Less than one prompt's KVCache: the next one waits in line."""
PATIENCE_S = 60.0


def paced() -> Pace:
    """50 ms a prompt, whatever its length, and as long for 10 tokens of an answer."""
    profile = Profile(
        hardware="slow",
        model="made up",
        gpus=1,
        prefill=PrefillCurve(source="a test", knots=((1024, 0.05),)),
        kvcache=CacheCurve(source="a test", knots=((1024, 2**20),)),
        decode=Decode(bs_max=8, step=StepCurve(source="a test", knots=((8, 0.005),))),
    )
    model = PacedModel(title="made up", token_bytes=1024, state_bytes=4096)
    return Pace(model=model, profile=profile, time_scale=1.0)


@dataclass
class Deployment:
    """Two prefill and three decode engines of one datacenter. Requests go to the first prefill engine that
    takes any, and in turn to the first two such decode engines."""

    service: Service
    engines: dict[str, Engine]
    roles: dict[str, Any]
    ledger: Ledger
    ports: dict[str, int] = field(default_factory=dict)
    started: list[tuple[str, str]] = field(default_factory=list)
    """(request, engine) of each prefill, in the order they were told of."""
    moved: list[str] = field(default_factory=list)

    def note(self, event: ev.Event) -> None:
        if isinstance(event, ev.PrefillStarted):
            self.started.append((event.request_id, event.engine))
        elif isinstance(event, ev.RequestMoved):
            self.moved.append(event.request_id)

    async def drain(self, name: str) -> None:
        engine = self.engines[name]
        engine.draining = True
        async with asyncio.timeout(PATIENCE_S):
            while engine.orders:
                self.service.relieve(engine)
                await asyncio.sleep(0.01)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.001)

    async def is_idle(self) -> bool:
        """Nobody holds anything of any request, in the controller or at an engine."""
        roles, engines = self.roles.values(), self.engines.values()
        await self.until(lambda: all(role.stats.queued == role.stats.running == 0 for role in roles))
        decodes = [role._engine for role in roles if isinstance(role, DecodeRole)]
        await self.until(lambda: not any(decode.reserved_bytes for decode in decodes))
        return not any(engine.orders or engine.waiting_tokens for engine in engines)


def in_turn(request: Request, view: View, plan: Plan) -> Placement:
    prefill, decode = (
        [e.name for e in view.engines if e.alive and e.role == role] for role in ("prefill", "decode")
    )
    return Placement(
        prefill=prefill[0],
        decode=decode[int(request.id[1:]) % len(decode[:2])],
        offloaded=False,
        uncached_tokens=request.prompt_tokens,
        reason="in turn",
    )


@asynccontextmanager
async def deployed(
    folder: Path, transport: TransportSettings, pace: Pace | None, model: Any
) -> AsyncIterator[Deployment]:
    ports: dict[str, int] = {}
    roles: dict[str, Any] = {}
    engines: dict[str, Engine] = {}
    async with AsyncExitStack() as stack:
        for name, kind in ROLES.items():
            order = EngineOrder(
                name=name, role=kind, netns=None, control_socket=str(folder / name), log="", host="127.0.0.1",
                port=0, key_hex="00" * 32, settings=EngineSettings(chunk=CHUNK),
                transport=transport, pace=pace,
            )  # fmt: skip
            role = PrefillRole(order, model) if kind == "prefill" else DecodeRole(order, model)
            app = web.Application(client_max_size=2**26)
            app.add_routes(await role.open(stack))
            runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.UnixSite(runner, order.control_socket).start()
            client = await stack.enter_async_context(ControlClient(name, order.control_socket))
            roles[name] = role
            if isinstance(role, DecodeRole):
                ports[name] = role.receiver.port
            engines[name] = Engine(name=name, datacenter="home", role=kind, client=client, capacity=8)
        layout = roles["p0"]._layout
        ledger = Ledger(time.monotonic, time.monotonic())
        service = Service(
            engines=engines,
            datacenters=(DatacenterView(name="home", role="local"),),
            network=Loopback(ports),
            route=in_turn,
            plan=Plan(),
            expected_bytes=layout.request_bytes,
            ledger=ledger,
        )
        lab = Deployment(service, engines, roles, ledger)
        ledger.subscribe(lab.note)
        yield lab


@pytest.fixture(params=["paced", "zstd", pytest.param("real", marks=pytest.mark.model)])
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Deployment]:
    compression: Literal["none", "zstd"] = "zstd" if request.param == "zstd" else "none"
    transport = TransportSettings(window=WINDOW_BYTES, compression=compression)
    async with deployed(tmp_path, transport, *engines_of(request.param)) as lab:
        yield lab


def engines_of(kind: str) -> tuple[Pace | None, Any]:
    if kind != "real":
        return paced(), None
    from prfaas_lab.model.torch_build import build

    return None, build(Model(name="qwen3-next-tiny"))


def ask(number: int, tokens: int = 300) -> Request:
    prompt = tuple((i * i * 31 + i * 7919 + number) % 384 for i in range(tokens))
    return Request(id=f"r{number}", arrival_s=None, prompt=prompt, output_tokens=10)


async def served(lab: Deployment, count: int, drained: str, moved: int) -> list[Any]:
    """The outputs of so many requests that come at once. An engine drains when the first prompt's turn has
    come, and prefill goes on once so many of the others have moved, and are in line again."""
    prefills = [lab.roles[name] for name in ("p0", "p1")]
    proceed = hold_up(*(role._engine._executor for role in prefills))
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        tasks = [group.create_task(lab.service.serve(ask(number))) for number in range(count)]
        await lab.until(lambda: lab.roles["p0"].stats.queued == count - 1)
        draining = group.create_task(lab.drain(drained))
        await lab.until(lambda: len(lab.moved) == moved)
        await lab.until(lambda: sum(role.stats.queued + role.stats.running for role in prefills) == count)
        proceed.set()
        await draining
    return [task.result() for task in tasks]


def hold_up(*executors: Any) -> asyncio.Event:
    """Until it is set, no prefill goes on."""
    proceed = asyncio.Event()

    def wrapped(prefill: Any) -> Any:
        async def later(*args: Any, **settings: Any) -> Any:
            await proceed.wait()
            return await prefill(*args, **settings)

        return later

    for executor in executors:
        executor.prefill = wrapped(executor.prefill)
    return proceed


def is_right(lab: Deployment, outputs: list[Any]) -> bool:
    """Every request was served, once, and keeps the laws of the ledger; a real model's tokens are those of
    one process. (Paced engines check the payload themselves.)"""
    records = [lab.ledger.tally.requests[f"r{number}"] for number in range(len(outputs))]
    assert [record.outcome for record in records] == ["completed"] * len(outputs), records
    assert [check(record) for record in records] == [[]] * len(outputs)
    assert all(record.destination == record.decode and record.source == record.prefill for record in records)
    assert sorted(name for name, _ in lab.started) == sorted(record.id for record in records)
    computed = sum(lab.roles[name].stats.tokens_total for name in ("p0", "p1"))
    assert computed == sum(record.prompt_tokens for record in records), "each prompt once"
    model = getattr(lab.roles["p0"]._engine._executor, "_model", None)
    if model is None:
        return True
    from prfaas_lab.model.torch_reference import explain, generate

    references = [generate(model, ask(n).prompt, 10, CHUNK) for n in range(len(outputs))]
    return all(explain(*both)[0] != "mismatch" for both in zip(references, outputs, strict=True))


async def test_a_decode_engine_that_drains_waits_for_what_has_begun_and_for_nothing_else(
    lab: Deployment,
) -> None:
    outputs = await served(lab, 6, "d0", moved=2)
    assert is_right(lab, outputs)
    assert lab.moved == ["r2", "r4"]
    assert lab.started == [(f"r{number}", "p0") for number in range(6)], "nobody lost a place"
    decoded = [record.decode for record in lab.ledger.tally.requests.values()]
    assert decoded == ["d0", "d1", "d2", "d1", "d2", "d1"], "to whoever has fewest in hand"
    assert await lab.is_idle()


async def test_prompts_that_wait_for_a_prefill_engine_that_drains_go_to_another(lab: Deployment) -> None:
    outputs = await served(lab, 6, "p0", moved=5)
    assert is_right(lab, outputs)
    assert sorted(lab.started) == [("r0", "p0"), *((f"r{number}", "p1") for number in range(1, 6))]
    in_line = [name for name, engine in lab.started if engine == "p1"][1:]  # the first found it idle
    assert in_line == sorted(in_line)
    decoded = [record.decode for record in lab.ledger.tally.requests.values()]
    assert decoded == ["d0", "d1"] * 3, "where they were to be decoded"
    assert await lab.is_idle()


@pytest.mark.parametrize("resumed", [False, True])
async def test_kvcache_that_waits_in_line_goes_elsewhere_and_what_is_on_the_wire_comes(
    lab: Deployment, resumed: bool
) -> None:
    """Nothing comes through to d0: the first of its three transfers is on the wire, the others wait. With
    `resumed`, it takes up its role again before they have moved."""
    receiver = lab.roles["d0"].receiver
    receiver.pause()
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        tasks = [group.create_task(lab.service.serve(ask(number))) for number in range(6)]
        await lab.until(lambda: len(lab.started) == 6 and lab.ledger.tally.completed == 3)
        if resumed:
            lab.engines["d0"].draining = True
            lab.service.relieve(lab.engines["d0"])
            lab.engines["d0"].draining = False
        else:
            draining = group.create_task(lab.drain("d0"))
            await lab.until(lambda: lab.ledger.tally.completed == 5)
            assert not draining.done()
        receiver.resume()
    assert is_right(lab, [task.result() for task in tasks])
    decoded = [record.decode for record in lab.ledger.tally.requests.values()]
    assert lab.moved == ([] if resumed else ["r2", "r4"])
    assert decoded == ["d0", "d1"] * 3 if resumed else ["d0", "d1", "d2", "d1", "d2", "d1"]
    assert await lab.is_idle()


async def test_kvcache_is_sent_elsewhere_without_what_is_held_there(lab: Deployment) -> None:
    """Two transfers to d0, of which the second waits; it goes to d1, which is said to hold a chunk of it."""
    lab.roles["d0"].receiver.pause()
    orders = []
    for number, name in ((0, "d0"), (1, "d0"), (1, "d1")):
        decode = DecodeOrder(request_id=f"r{number}", prompt_tokens=300, output_tokens=10)
        order, told = begin(lab, name, "/decode", decode)
        orders.append(order)
        await lab.until(lambda told=told: "reserved" in told)  # type: ignore[misc]
    for number in range(2):
        prefill = PrefillOrder(
            request_id=f"r{number}", prompt=ask(number).prompt, prompt_tokens=300, output_tokens=10,
            decode_host="127.0.0.1", decode_port=lab.roles["d0"].receiver.port,
        )  # fmt: skip
        order, told = begin(lab, "p0", "/prefill", prefill)
        orders.append(order)
        await lab.until(lambda told=told: "prefilled" in told)  # type: ignore[misc]
    async with asyncio.timeout(PATIENCE_S):
        while "unsent" not in told:
            order.withdraw()
            await asyncio.sleep(0.01)
    port = lab.roles["d1"].receiver.port
    order.redirect(
        RedirectOrder(request_id="r1", decode_host="127.0.0.1", decode_port=port, held_tokens=CHUNK)
    )
    await lab.until(lambda: "sent" in told)
    layout = lab.roles["p0"]._layout
    held_bytes = layout.request_bytes(CHUNK) - layout.request_bytes(0)
    assert told["sent"]["bytes"] == layout.request_bytes(300) - held_bytes + HANDOVER_BYTES
    for each in orders:
        each.cancel()
    lab.roles["d0"].receiver.resume()
    assert await lab.is_idle()


def begin(
    lab: Deployment, engine: str, path: str, order: EngineTask
) -> tuple[OpenOrder, dict[str, dict[str, Any]]]:
    """An order, and its stages by name as they come."""
    told: dict[str, dict[str, Any]] = {}

    def tell(stage: dict[str, Any]) -> None:
        told[stage["stage"]] = stage

    return lab.engines[engine].client.begin(path, order, tell, lambda error: None), told


async def test_where_nobody_else_is_what_drains_keeps_what_it_has(lab: Deployment) -> None:
    for name in ("d1", "d2"):
        lab.engines[name].alive = False
    outputs = await served(lab, 3, "d0", moved=0)
    assert is_right(lab, outputs)
    assert not lab.moved
    assert await lab.is_idle()


@pytest.mark.parametrize("sending", [False, True])
async def test_a_request_whose_new_engine_has_no_memory_for_it_fails_and_frees_what_it_had(
    lab: Deployment, sending: bool
) -> None:
    proceed = hold_up(lab.roles["p0"]._engine._executor)
    lab.roles["d0"].receiver.pause()
    lab.roles["d2"]._engine._max_reserved_bytes = 0
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        tasks = [group.create_task(lab.service.serve(ask(number))) for number in range(6)]
        await lab.until(lambda: lab.roles["p0"].stats.queued == 5)
        if sending:
            proceed.set()
            await lab.until(lambda: len(lab.started) == 6 and lab.ledger.tally.completed == 3)
        group.create_task(lab.drain("d0"))
        await lab.until(lambda: lab.ledger.tally.failed > 0)
        lab.roles["d2"]._engine._max_reserved_bytes = 2**30
        proceed.set()
        lab.roles["d0"].receiver.resume()
    failed = [record for record in lab.ledger.tally.requests.values() if record.outcome == "failed"]
    assert {record.failure_stage for record in failed} == {"reserve"}
    assert all("do not fit" in record.failure_reason for record in failed)
    assert [task.result() for task in tasks].count(None) == len(failed)
    assert await lab.is_idle()


@pytest.mark.parametrize("pause_s", [0.0, 0.001, 0.002, 0.005, 0.01])
@pytest.mark.parametrize("sending", [False, True])
async def test_requests_that_are_given_up_while_they_move_leave_nothing_behind(
    lab: Deployment, sending: bool, pause_s: float
) -> None:
    """Prompts in line, or KVCache in line."""
    proceed = hold_up(lab.roles["p0"]._engine._executor)
    lab.roles["d0"].receiver.pause()
    tasks = [asyncio.ensure_future(lab.service.serve(ask(number))) for number in range(6)]
    await lab.until(lambda: lab.roles["p0"].stats.queued == 5)
    if sending:
        proceed.set()
        await lab.until(lambda: len(lab.started) == 6 and lab.ledger.tally.completed == 3)
    lab.engines["d0"].draining = True
    lab.service.relieve(lab.engines["d0"])
    await asyncio.sleep(pause_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    proceed.set()
    lab.roles["d0"].receiver.resume()
    assert lab.ledger.tally.completed == (3 if sending else 0)
    assert lab.ledger.tally.in_flight == 0
    assert await lab.is_idle()
    lab.engines["d0"].draining = False
    assert await lab.service.serve(ask(8)) is not None
