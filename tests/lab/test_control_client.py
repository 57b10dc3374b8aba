from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from prfaas_lab.errors import EngineError
from prfaas_lab.lab.control_client import ControlClient
from prfaas_lab.lab.orders import VerifyOrder


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
