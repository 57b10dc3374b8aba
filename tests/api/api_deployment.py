"""A deployment whose engines follow a script, in this process, behind a real endpoint on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from prfaas_lab.api.endpoint import Endpoint, open_endpoint
from prfaas_lab.api.settings import EndpointSettings
from prfaas_lab.api.tokenizer import ByteTokenizer
from prfaas_lab.errors import EngineError
from prfaas_lab.fabric.shape import Shape
from prfaas_lab.fabric.timeline import Change, ShapeChange, Timeline
from prfaas_lab.lab.conditions import Conditions
from prfaas_lab.lab.deployment import Deployment
from prfaas_lab.lab.engines import Ended, Engine, OpenOrder, Tell
from prfaas_lab.lab.meanwhile import meanwhile
from prfaas_lab.lab.orders import HANDOVER_BYTES, DecodeOrder, EngineTask, ModelReady, PrefillOrder
from prfaas_lab.lab.service import Service
from prfaas_lab.lab.stages import Followed
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.router import DatacenterView, PathView, Plan, policy
from prfaas_lab.spec.scenario import Fixed, Resolved, Scenario, Uniform, Workload
from prfaas_lab.spec.topology import Topology

TOKEN_BYTES, STATE_BYTES = 10, 100
TOPOLOGY = Topology.model_validate(
    {
        "name": "two",
        "datacenters": {
            "east": {"role": "prfaas", "engines": {"prefill": 1}},
            "west": {"role": "local", "engines": {"prefill": 1, "decode": 1}},
        },
        "links": {"wan": {"between": ["east", "west"], "rate": 1e8, "delay": 0.01}},
    }
)


@dataclass
class EchoEngines:
    """Both ends of a hand-over in one. The output is `answer`, again and again, as bytes; `proceed` holds
    back all but the first token."""

    answer: str = "Grüße, 世界! "
    fail_at: str = ""
    fails: str = "never"
    """Requests with ids that end so fail after their first token."""
    proceed: asyncio.Event = field(default_factory=asyncio.Event)
    sent: dict[str, asyncio.Future[int]] = field(default_factory=dict)
    open_orders: list[str] = field(default_factory=list)
    orders: list[PrefillOrder] = field(default_factory=list)
    followed: Followed = field(default_factory=Followed)

    def __post_init__(self) -> None:
        self.proceed.set()

    def begin(self, path: str, order: EngineTask, tell: Tell, ended: Ended) -> OpenOrder:
        return self.followed.follow(self.stages(path, order), tell, ended, self.never)

    async def never(self) -> bool:
        """Not one order is given back."""
        return False

    async def stages(self, path: str, order: EngineTask) -> AsyncGenerator[dict[str, Any], None]:
        assert isinstance(order, DecodeOrder | PrefillOrder)
        self.open_orders.append(order.request_id)
        try:
            script = self._decode(order) if isinstance(order, DecodeOrder) else self._prefill(order)
            async for stage in script:
                if stage["stage"] == self.fail_at:
                    raise EngineError("ended in the middle of an order", where="west-d0")
                yield stage
        finally:
            self.open_orders.remove(order.request_id)

    async def state(self) -> dict[str, Any]:
        return {"queued": 0, "running": 0, "busy_s": 0.0, "tokens_total": 0}

    async def _decode(self, order: DecodeOrder) -> AsyncGenerator[dict[str, Any], None]:
        arrived = self.sent[order.request_id] = asyncio.get_running_loop().create_future()
        yield {"stage": "reserved"}
        size = await arrived
        yield {"stage": "received", "bytes": size, "last_byte_at": time.monotonic()}
        yield {"stage": "restored", "at": time.monotonic()}
        tokens = ByteTokenizer().encode(self.answer) or [1]
        for index in range(order.output_tokens):
            if index:
                if order.request_id.endswith(self.fails):
                    raise EngineError("ended in the middle of an order", where="west-d0")
                await self.proceed.wait()
                await asyncio.sleep(0)
            yield {"stage": "tokens", "tokens": [tokens[index % len(tokens)]]}

    async def _prefill(self, order: PrefillOrder) -> AsyncGenerator[dict[str, Any], None]:
        self.orders.append(order)
        now, tokens = time.monotonic(), len(order.prompt)
        yield {"stage": "prefilled", "started_at": now, "finished_at": now, "computed_tokens": tokens}
        size = STATE_BYTES + TOKEN_BYTES * tokens + HANDOVER_BYTES
        self.sent.pop(order.request_id).set_result(size)
        yield {"stage": "sent", "bytes": size, "first_byte_at": now, "last_ack_at": now, "retried": 0}


class FakeFabric:
    """Links that are only what was last set."""

    def __init__(self) -> None:
        self.shapes = dict.fromkeys((("wan", "east"), ("wan", "west")), Shape(rate_bps=1e8, delay_s=0.01))

    @property
    def directions(self) -> tuple[tuple[str, str], ...]:
        return tuple(self.shapes)

    def shape(self, link: str, source: str) -> Shape:
        return self.shapes[link, source]

    def check(self, link: str, source: str, shape: Shape) -> None:
        pass

    async def apply(self, change: Change) -> float:
        assert isinstance(change, ShapeChange)
        self.shapes[change.link, change.source] = change.shape
        return asyncio.get_running_loop().time()

    def far_end(self, link: str, source: str) -> str:
        return "west" if source == "east" else "east"

    def data_address(self, source: str, destination: str) -> tuple[str, int]:
        return "10.77.0.2", 7000

    def paths(self) -> tuple[PathView, ...]:
        return (PathView(source="east", destination="west", rate_bps=1e8, rtt_s=0.02),)


def deployment(engines: EchoEngines) -> Deployment:
    ledger, fabric = Ledger(time.monotonic, time.monotonic()), FakeFabric()
    places = {"east-p0": ("east", "prefill"), "west-p0": ("west", "prefill"), "west-d0": ("west", "decode")}
    held = {
        name: Engine(name=name, datacenter=site, role=role, client=engines, capacity=4)
        for name, (site, role) in places.items()
    }
    scenario = Scenario(
        name="two",
        topology=TOPOLOGY,
        workload=Workload(
            arrivals=Uniform(kind="uniform", rate=1.0),
            prompt=Fixed(kind="fixed", tokens=1),
            output=Fixed(kind="fixed", tokens=1),
        ),
    )
    service = Service(
        engines=held,
        datacenters=(DatacenterView(name="east", role="prfaas"), DatacenterView(name="west", role="local")),
        network=fabric,
        route=policy("threshold"),
        plan=Plan(threshold_tokens=64),
        expected_bytes=lambda tokens: STATE_BYTES + TOKEN_BYTES * tokens,
        ledger=ledger,
    )
    timeline = Timeline(fabric.shapes, (), ())
    return Deployment(
        resolved=Resolved(scenario=scenario, topology=TOPOLOGY, source="two.yaml"),
        fabric=fabric,  # type: ignore[arg-type]
        engines=held,
        service=service,
        ledger=ledger,
        conditions=Conditions(timeline, ledger, apply=fabric.apply, check=fabric.check),
        model=ModelReady(
            title="echo", vocab_size=384, parameters=1, token_bytes=TOKEN_BYTES,
            state_bytes=STATE_BYTES, load_s=0.0,
        ),
        start_verifier=None,  # type: ignore[arg-type]
    )  # fmt: skip


@dataclass
class Served:
    """An endpoint that is open, and one who calls it."""

    endpoint: Endpoint
    engines: EchoEngines
    deployment: Deployment
    client: aiohttp.ClientSession

    async def ask(self, path: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
        """POST; status, answer and headers."""
        async with self.client.post(path, json=body, headers=headers) as response:
            return response.status, await response.json(), response.headers

    @property
    def idle(self) -> bool:
        """Nothing is left of any request."""
        engines = self.deployment.engines.values()
        return not self.engines.open_orders and not any(e.view.running + e.view.queued for e in engines)


@contextlib.asynccontextmanager
async def serving(engines: EchoEngines | None = None, **settings: Any) -> AsyncIterator[Served]:
    engines = engines or EchoEngines()
    held = deployment(engines)
    async with (
        asyncio.timeout(300),
        meanwhile(held.conditions.run(endless=True)),
        open_endpoint(held, EndpointSettings(port=0, **settings)) as endpoint,
        aiohttp.ClientSession(f"http://127.0.0.1:{endpoint.port}") as client,
    ):
        yield Served(endpoint, engines, held, client)
