"""What goes on beside the requests while a deployment serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from api_deployment import EchoEngines, deployment

from prfaas_lab.lab.deployment import Deployment
from prfaas_lab.lab.interfere import PolicyChange, change_policy
from prfaas_lab.lab.serving import _Serve
from prfaas_lab.router import PathView
from prfaas_lab.spec.scenario import Policy, SchedulerSettings


class Door:
    async def drain(self) -> None:
        """Nobody is inside."""


@asynccontextmanager
async def opener(deployment: Deployment) -> AsyncIterator[Door]:
    yield Door()


@pytest.mark.parametrize("change", [{"threshold": 128}, {"name": "local-only"}])
async def test_policy_prfaas_adapts_until_it_is_changed_by_hand(change: dict[str, object]) -> None:
    held = deployment(EchoEngines())
    asked = {"policy": Policy(name="prfaas", threshold=64), "scheduler": SchedulerSettings(short=0.01)}
    scenario = held.resolved.scenario.model_copy(update=asked)
    held = replace(held, resolved=held.resolved.model_copy(update={"scenario": scenario}))
    path = PathView(source="east", destination="west", rate_bps=1e8, rtt_s=0.02, up=False)
    held.fabric.paths = lambda: (path,)  # type: ignore[attr-defined]
    serve = _Serve(opener, "")
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(serve.run(held))
        while held.service.plan.threshold_tokens != 2**20:  # noqa: ASYNC110 - nothing crosses
            await asyncio.sleep(0.005)
        change_policy(held, PolicyChange.model_validate(change))
        by_hand = held.service.plan
        await asyncio.sleep(0.1)
        assert held.service.plan is by_hand
        assert by_hand.threshold_tokens == change.get("threshold", 2**20)
        assert serve.drain()
