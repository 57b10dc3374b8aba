"""Claims about the controller's hold on its processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
import uvloop

from prfaas_lab.errors import EngineError
from prfaas_lab.lab.orders import LoadModel, PacedModel, VerifierOrder
from prfaas_lab.lab.processes import Processes
from prfaas_lab.spec.scenario import Model

TIMEOUT_S = 60.0


async def test_a_dead_zygote_is_told_to_whoever_asks_it_for_another_process(tmp_path: Path) -> None:
    paced = PacedModel(title="none", token_bytes=1, state_bytes=1)
    processes = Processes(LoadModel(model=Model(), chunk_tokens=64, paced=paced), tmp_path / "zygote.log")
    order = VerifierOrder(
        name="late", control_socket=str(tmp_path / "late.sock"), log=str(tmp_path / "log"), chunk_tokens=64
    )
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(processes.watch(lambda name, status: None))
        await processes.ready(TIMEOUT_S)
        os.kill(processes.pid, signal.SIGKILL)
        await asyncio.wait_for(watching, TIMEOUT_S)
        with pytest.raises(EngineError, match="cannot start late: the zygote ended"):
            await processes.fork(order, TIMEOUT_S)
        await processes.close()


@pytest.mark.parametrize("idle", [True, False])
def test_the_zygote_ends_at_once_idle_or_loading(
    idle: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when it is late: for that we would wait for minutes here."""
    monkeypatch.setattr("prfaas_lab.lab.processes._END_DEADLINE_S", 10 * TIMEOUT_S)
    paced = PacedModel(title="none", token_bytes=1, state_bytes=1) if idle else None
    processes = Processes(LoadModel(model=Model(), chunk_tokens=64, paced=paced), tmp_path / "zygote.log")

    async def run() -> float:
        async with asyncio.TaskGroup() as group:
            group.create_task(processes.watch(lambda name, status: None))
            if idle:
                await processes.ready(TIMEOUT_S)
            await asyncio.sleep(0.1)
            began = time.monotonic()
            await processes.close()
        return time.monotonic() - began

    assert uvloop.run(run()) < TIMEOUT_S
