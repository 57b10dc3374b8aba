"""Claims about engines of this process that follow orders: what of them is given back, and what goes on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from prfaas_lab.engine.analytic import AnalyticPrefill
from prfaas_lab.lab.orders import PacedModel, PrefillOrder, RedirectOrder
from prfaas_lab.lab.simulated import Landings, SimulatedPrefill
from prfaas_lab.lab.virtual_time import run_virtual


def test_a_prompt_is_not_given_back_on_its_way_to_the_engine_nor_kvcache_on_the_wire() -> None:
    """Only what waits in line: for its prefill, or whole behind another transfer."""

    class Wire:
        """A transfer that is in line as long as `waits`."""

        waits = False

        def cancel(self) -> None:
            pass

    wire, told, hosts = Wire(), list[str](), list[str]()

    class Network:
        def send(self, source: str, host: str, pieces: Any, on_arrived: Any) -> Wire:
            hosts.append(host)
            return wire

    class Distant(SimulatedPrefill):
        def comes_at(self, order: PrefillOrder) -> float:
            return asyncio.get_running_loop().time() + 1.0

    async def run() -> None:
        engine = AnalyticPrefill(lambda tokens, cached: 10.0, max_queue=4)
        client = Distant(
            "p", engine, prefill_s=lambda tokens, cached: 10.0, chunk_tokens=64,
            model=PacedModel(title="made up", token_bytes=10, state_bytes=100), network=Network(),  # type: ignore[arg-type]
            landings=Landings(),
        )  # fmt: skip
        order = PrefillOrder(
            request_id="r", prompt=(), prompt_tokens=64, output_tokens=2, decode_host="d0", decode_port=1
        )
        first, second = (
            client.begin(
                "/prefill", replace(order, request_id=name), lambda s: told.append(s["stage"]), print
            )
            for name in ("a", "b")
        )
        for prompt in (first, second):
            prompt.withdraw()
        assert (told, engine.stats.queued) == ([], 0)
        await asyncio.sleep(2.0)
        first.withdraw()
        assert (told, engine.stats.queued) == ([], 1)
        second.withdraw()
        assert (told, engine.stats.queued) == (["withdrawn"], 0)
        second.withdraw()
        assert told == ["withdrawn"]
        await asyncio.sleep(10.0)
        first.withdraw()
        assert told == ["withdrawn", "prefilled"]
        wire.waits = True
        first.withdraw()
        assert told == ["withdrawn", "prefilled", "unsent"]
        first.withdraw()
        first.redirect(RedirectOrder(request_id="a", decode_host="d1", decode_port=1, held_tokens=64))
        first.withdraw()  # what d1 holds is not among what waits
        assert told == ["withdrawn", "prefilled", "unsent"]
        assert hosts == ["d0", "d1"]

    run_virtual(run())
