"""The engines of a run as the controller holds them: where each is, what it has in hand, how to ask it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import aiohttp
from pydantic import BaseModel

from prfaas_lab.errors import EngineError
from prfaas_lab.lab.stages import read_stages
from prfaas_lab.router.values import EngineView, Role

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)  # an order lasts as long as its request; draining bounds it
_ASK_TIMEOUT_S = 120.0
"""One generation of a prompt and its output, on a machine whose cores are all taken."""
_STATE_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


class EngineClient(Protocol):
    """How a service asks an engine: over a socket, or in the same process when simulated."""

    def stages(self, path: str, order: BaseModel) -> AsyncGenerator[dict[str, Any], None]:
        """Give an order; its stages as they come. Closing the iterator cancels the order.

        Raises EngineError when the order is refused or fails, or the engine goes away.
        """
        ...

    async def state(self) -> dict[str, Any]:
        """What the engine says of itself now (EngineStats). Raises EngineError."""
        ...


class ControlClient:
    """Asks one process over its Unix socket. Open it with `async with`."""

    def __init__(self, name: str, control_socket: str) -> None:
        self.name = name
        connector = aiohttp.UnixConnector(path=control_socket, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, base_url="http://engine")

    async def __aenter__(self) -> ControlClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def stages(self, path: str, order: BaseModel) -> AsyncGenerator[dict[str, Any], None]:
        body = order.model_dump_json()
        try:
            async with self._session.post(path, data=body, timeout=_NO_TIMEOUT) as response:
                await self._refuse_errors(response)
                async for stage in read_stages(response, self.name):
                    yield stage
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(f"cannot be reached ({error})", where=self.name) from error

    async def ask(self, path: str, order: BaseModel, *, timeout_s: float = _ASK_TIMEOUT_S) -> dict[str, Any]:
        """POST an order that has one answer. Raises EngineError, also when none comes in time."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.post(path, data=order.model_dump_json(), timeout=timeout) as response:
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


class Engine:
    """One engine of the run. The counts are the controller's own, so they are never stale."""

    def __init__(
        self,
        *,
        name: str,
        datacenter: str,
        role: Role,
        client: EngineClient,
        capacity: int,
        other_capacity: int = 1,
    ) -> None:
        """`other_capacity`: what its capacity would be in the other role."""
        self.name, self.datacenter, self.role = name, datacenter, role
        self.client, self.capacity, self._other_capacity = client, capacity, other_capacity
        self.waiting_tokens = 0
        self.computed_tokens, self.computing_s = 0, 0.0
        self.waiting_s = 0.0
        self.orders: set[str] = set()
        self.on_change: Callable[[Engine], None] | None = None
        """Told whenever the view is no longer what it was."""
        self._alive, self._draining = True, False
        self._view: EngineView | None = None

    @property
    def alive(self) -> bool:
        return self._alive

    @alive.setter
    def alive(self, alive: bool) -> None:
        self._alive = alive
        self.changed()

    @property
    def draining(self) -> bool:
        """Whether it takes nothing new, so that no policy sees it alive."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining = draining
        self.changed()

    def become(self, role: Role) -> None:
        """Take another role. Its process must be one that has both."""
        assert not self.orders, "drained first"
        self.role, self.capacity, self._other_capacity = role, self._other_capacity, self.capacity
        self.changed()

    @property
    def view(self) -> EngineView:
        """As a policy sees it: prompt tokens still to compute, and orders in hand."""
        if self._view is None:
            running = min(len(self.orders), self.capacity)
            self._view = EngineView(
                name=self.name,
                datacenter=self.datacenter,
                role=self.role,
                queued=len(self.orders) - running,
                running=running,
                queued_tokens=self.waiting_tokens,
                queued_s=max(0.0, round(self.waiting_s, 9)),
                capacity=self.capacity,
                alive=self._alive and not self._draining,
                prefill_s_per_token=self.computing_s / self.computed_tokens if self.computed_tokens else None,
            )
        return self._view

    def changed(self) -> None:
        """Something that the view shows is different."""
        self._view = None
        if self.on_change is not None:
            self.on_change(self)

    @contextmanager
    def holding(self, request_id: str, prompt_tokens: int, prefill_s: float = 0.0) -> Iterator[Hold]:
        """Count an order until it is released, or the context closes."""
        hold = Hold(self, request_id, prompt_tokens, prefill_s)
        try:
            yield hold
        finally:
            hold.release()


class Hold:
    """An order that an engine has in hand; its prompt tokens wait until they are computed."""

    def __init__(self, engine: Engine, request_id: str, prompt_tokens: int, prefill_s: float = 0.0) -> None:
        self._engine, self._request_id = engine, request_id
        self._prompt_tokens, self._prefill_s = prompt_tokens, prefill_s
        engine.orders.add(request_id)
        engine.waiting_tokens += prompt_tokens
        engine.waiting_s += prefill_s
        engine.changed()

    def release(self) -> None:
        """The engine is done with it. Doing so twice is fine."""
        if self._request_id in self._engine.orders:
            self._engine.orders.discard(self._request_id)
            self._engine.changed()
        self.computed()

    def computed(self) -> None:
        """Its prompt waits no longer."""
        if self._prompt_tokens:
            self._engine.waiting_tokens -= self._prompt_tokens
            self._engine.waiting_s -= self._prefill_s
            self._prompt_tokens, self._prefill_s = 0, 0.0
            self._engine.changed()
