"""How the controller asks its processes: HTTP over a Unix socket."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import aiohttp
from pydantic_core import to_json

from prfaas_lab.errors import EngineError
from prfaas_lab.lab.engines import Ended, OpenOrder, Tell
from prfaas_lab.lab.orders import EngineTask, PrefillOrder, RedirectOrder, WithdrawOrder
from prfaas_lab.lab.stages import Followed, read_stages

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)  # an order lasts as long as its request; draining bounds it
_ASK_TIMEOUT_S = 120.0
"""One generation of a prompt and its output, on a machine whose cores are all taken."""
_STATE_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_LONGEST_STAGE_BYTES = 1 << 26
"""A stage is one line; that of a large prefix cache names all its blocks, at 36 bytes each."""


class ControlClient:
    """Asks one process over its Unix socket. Open it with `async with`."""

    def __init__(self, name: str, control_socket: str) -> None:
        self.name = name
        connector = aiohttp.UnixConnector(path=control_socket, limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector,
            base_url="http://engine",
            read_bufsize=_LONGEST_STAGE_BYTES // 2,  # a line may have twice that
        )
        self._followed = Followed()

    async def __aenter__(self) -> ControlClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._followed.close()
        await self._session.close()

    def begin(self, path: str, order: EngineTask, tell: Tell, ended: Ended) -> OpenOrder:
        ask = partial(self._ask_for, path, order)
        return self._followed.follow(self.stages(path, order), tell, ended, ask)

    async def _ask_for(self, path: str, order: EngineTask, redirect: RedirectOrder | None) -> None:
        """An order back, or that it goes elsewhere."""
        if redirect is not None:
            await self.ask(f"{path}/redirect", redirect)
        elif isinstance(order, PrefillOrder):
            await self.ask(f"{path}/withdraw", WithdrawOrder(request_id=order.request_id))

    async def stages(self, path: str, order: EngineTask) -> AsyncGenerator[dict[str, Any], None]:
        body = to_json(order)
        try:
            async with self._session.post(path, data=body, timeout=_NO_TIMEOUT) as response:
                await self._refuse_errors(response)
                async for stage in read_stages(response, self.name):
                    yield stage
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(f"cannot be reached ({error})", where=self.name) from error

    async def ask(self, path: str, order: EngineTask, *, timeout_s: float = _ASK_TIMEOUT_S) -> dict[str, Any]:
        """POST an order that has one answer. Raises EngineError, also when none comes in time."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.post(path, data=to_json(order), timeout=timeout) as response:
                await self._refuse_errors(response)
                answer: dict[str, Any] = await response.json()
                return answer
        except TimeoutError as error:
            words = f"did not answer {path} within {timeout_s:g} s"
            raise EngineError(words, where=self.name, remedy="see its log beside the summary") from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(f"cannot be reached ({error})", where=self.name) from error

    async def state(self) -> dict[str, Any]:
        try:
            async with self._session.get("/state", timeout=_STATE_TIMEOUT) as response:
                state: dict[str, Any] = await response.json()
                return state
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EngineError(f"cannot be reached ({error!r})", where=self.name) from error

    async def _refuse_errors(self, response: aiohttp.ClientResponse) -> None:
        if response.status >= 400:
            text = (await response.text())[:500]
            raise EngineError(f"refused the order with status {response.status}: {text}", where=self.name)
