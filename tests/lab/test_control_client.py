from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from prfaas_lab.errors import EngineError
from prfaas_lab.lab.cache_news import PromptNames
from prfaas_lab.lab.control_client import ControlClient
from prfaas_lab.lab.orders import ReceiveCopy, VerifyOrder
from prfaas_lab.lab.stages import StageStream


async def test_a_process_that_never_answers_is_given_up_in_words(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    path = str(tmp_path / "sock")
    order = VerifyOrder(request_id="r0", prompt=(1,), tokens=(2,))
    async with await asyncio.start_unix_server(silent, path), ControlClient("verifier-0", path) as client:
        with pytest.raises(EngineError, match=r"did not answer /verify within 0\.05 s") as given_up:
            await client.ask("/verify", order, timeout_s=0.05)
    assert "verifier-0" in str(given_up.value)


async def test_a_cache_of_many_blocks_is_told_in_one_stage(tmp_path: Path) -> None:
    names = [f"{number:032x}" for number in range(50_000)]

    async def receive(http: web.Request) -> web.StreamResponse:
        await http.read()
        async with StageStream(http) as stages:
            await stages.say("cache", blocks_added=names)
        return stages.response

    app, path = web.Application(), str(tmp_path / "sock")
    app.add_routes([web.post("/cache/receive", receive)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.UnixSite(runner, path).start()
        order = ReceiveCopy(copy_id="c", blocks=PromptNames(tokens=1, block_tokens=1, names=""))
        async with ControlClient("east-p0", path) as client:
            told = [stage async for stage in client.stages("/cache/receive", order)]
    finally:
        await runner.cleanup()
    assert told == [{"stage": "cache", "blocks_added": names}]
