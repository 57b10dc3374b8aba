"""Claims about a request's way with each compression: real engines on loopback, in this process."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from made_up import Loopback
from msgspec.structs import replace

from prfaas_lab.kvcache import Geometry
from prfaas_lab.lab.control_client import ControlClient
from prfaas_lab.lab.decode_role import DecodeRole
from prfaas_lab.lab.engines import Engine
from prfaas_lab.lab.kvcache_manager import KVCacheManager
from prfaas_lab.lab.orders import CacheShare, EngineOrder, VerifierOrder
from prfaas_lab.lab.prefill_role import PrefillRole
from prfaas_lab.lab.service import Service
from prfaas_lab.lab.verify import Answer, verify
from prfaas_lab.lab.worker import Role, VerifierRole
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.metrics.summary import summarize
from prfaas_lab.router import DatacenterView, Plan, policy
from prfaas_lab.spec.scenario import EngineSettings, Model, TransportSettings
from prfaas_lab.spec.topology import PrefixCache
from prfaas_lab.workload.request import Request

pytestmark = pytest.mark.model

CHUNK, OUTPUT = 128, 16
CACHE = CacheShare(memory_bytes=2**26, settings=PrefixCache(memory=2**26))


@pytest.fixture(scope="module")
def model() -> Any:
    from prfaas_lab.model.torch_build import build, one_thread

    one_thread()
    return build(Model())


class Lab:
    """A prefill engine, a decode engine and a verifier, with the service that uses them."""

    def __init__(self, folder: Path, model: Any, compression: str, *, cached: bool = False) -> None:
        self.folder, self.model, self.cached = folder, model, cached
        self.transport = TransportSettings(compression=compression, connections=4)
        self.ledger = Ledger(time.monotonic, time.monotonic())
        self.ports: dict[str, int] = {}
        self.verifier = ("verifier", str(folder / "verifier.sock"))

    @asynccontextmanager
    async def service(self) -> AsyncIterator[Service]:
        from prfaas_lab.model.torch_cache import layout_of

        layout = layout_of(self.model, CHUNK)
        async with AsyncExitStack() as stack:
            order = VerifierOrder(name="v", control_socket=self.verifier[1], log="", chunk_tokens=CHUNK)
            await _serve(stack, VerifierRole(order, self.model), order.control_socket)
            engines = {
                name: Engine(name=name, datacenter=site, role=role, client=client, capacity=4)
                for name, site, role in (("p0", "west", "prefill"), ("d0", "west", "decode"))
                for client in [await self._engine(stack, name, role)]
            }
            caches = KVCacheManager(Geometry.of(layout), engines, namespace=b"n" * 16, ledger=self.ledger)
            yield Service(
                engines=engines,
                caches=caches if self.cached else None,
                datacenters=(DatacenterView(name="west", role="local"),),
                network=Loopback(self.ports),
                route=policy("local-only"),
                plan=Plan(threshold_tokens=0),
                expected_bytes=layout.request_bytes,
                ledger=self.ledger,
            )  # fmt: skip

    async def _engine(self, stack: AsyncExitStack, name: str, role: Any) -> ControlClient:
        order = EngineOrder(
            name=name, role=role, netns=None, control_socket=str(self.folder / f"{name}.sock"), log="",
            host="127.0.0.1", port=0, key_hex="5a" * 32, settings=EngineSettings(chunk=CHUNK),
            transport=self.transport, cache=CACHE if self.cached else None,
        )  # fmt: skip
        working = PrefillRole(order, self.model) if role == "prefill" else DecodeRole(order, self.model)
        await _serve(stack, working, order.control_socket)
        if isinstance(working, DecodeRole):
            self.ports[name] = working.receiver.port
        return await stack.enter_async_context(ControlClient(name, order.control_socket))


async def _serve(stack: AsyncExitStack, role: Role, control_socket: str) -> None:
    app = web.Application()
    app.add_routes(await role.open(stack))
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.UnixSite(runner, control_socket).start()


def prompts(model: Any, count: int = 4) -> list[Request]:
    chance = random.Random(7)
    return [
        Request(
            id=f"r{number}",
            arrival_s=0.0,
            prompt=tuple(chance.randrange(model.config.vocab_size) for _ in range(CHUNK * (number + 1) + 9)),
            output_tokens=OUTPUT,
        )
        for number in range(count)
    ]


async def summary_with(compression: str, model: Any, folder: Path) -> dict[str, Any]:
    lab = Lab(folder, model, compression)
    lab.ledger.record(
        ev.RunStarted(
            at_s=0.0, scenario="", topology="", mode="emulate", shaper="", model="", policy="",
            threshold_tokens=None, seed=0, duration_s=60.0, verify_share=1.0, compression=compression,
        )
    )  # fmt: skip
    async with lab.service() as service:
        requests = prompts(model)
        answers = [(request, await service.serve(request)) for request in requests]
        assert not lab.ledger.tally.failed, lab.ledger.tally.requests
        checked = [Answer(request=request, tokens=tuple(tokens or ())) for request, tokens in answers]
        await verify(checked, [lab.verifier], lab.ledger, lossy=lab.transport.lossy)
    return summarize(lab.ledger.tally)


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_without_loss_every_output_is_that_of_one_process(
    compression: str, model: Any, tmp_path: Path
) -> None:
    summary = await summary_with(compression, model, tmp_path)
    assert summary["verify"]["compared"] == 4
    assert summary["verify"]["mismatched"] == summary["verify"]["differing"] == 0
    assert summary["verify"]["token_agreement"] == pytest.approx(1.0, abs=0.2 * summary["verify"]["ties"])
    least, most = (1.1, 1.3) if compression == "zstd" else (1.0, 1.0)
    assert least <= summary["transport"]["compression_ratio"] <= most
    assert summary["transport"]["compression"] == compression


async def test_int8_shrinks_attention_to_a_third_and_tells_how_many_tokens_agree(
    model: Any, tmp_path: Path
) -> None:
    summary = await summary_with("int8", model, tmp_path)
    verified = summary["verify"]
    assert verified["compared"] == 4
    assert verified["mismatched"] == 0
    assert 0.5 < verified["token_agreement"] <= 1.0
    assert verified["output_agreement"] == (4 - verified["differing"] - verified["ties"]) / 4
    assert summary["transport"]["compression_ratio"] > 1.8
    assert summary["completed"] == 4


@pytest.mark.parametrize("compression", ["zstd", "int8"])
async def test_what_a_decode_engine_holds_is_what_would_be_sent_to_it_again(
    compression: str, model: Any, tmp_path: Path
) -> None:
    request = prompts(model)[-1]
    first, again = (replace(request, id=name) for name in ("first", "again"))
    lab = Lab(tmp_path, model, compression, cached=True)
    async with lab.service() as service:
        assert await service.serve(first) == await service.serve(again)
    before, after = (lab.ledger.tally.requests[name] for name in ("first", "again"))
    assert before.cached_tokens == 0
    assert after.cached_tokens == 4 * CHUNK
    assert after.wire_bytes < after.received_bytes < before.received_bytes
