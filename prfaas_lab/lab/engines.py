"""The engines of a run as the controller holds them: where each is, what it has in hand, how to ask it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

from prfaas_lab.lab.orders import EngineTask, RedirectOrder
from prfaas_lab.router.values import EngineView, Role

Tell = Callable[[dict[str, Any]], None]
"""Called with each stage of an order as it comes: on the loop, at once or later. It never raises."""
Ended = Callable[[BaseException | None], None]
"""Called once, after the last stage: what went wrong, if anything did. It never raises."""


class OpenOrder(Protocol):
    """An order that an engine has been given."""

    def cancel(self) -> object:
        """Give it up. Nothing is told of it from now on; once it has ended this does nothing."""
        ...

    def withdraw(self) -> object:
        """Ask for a prompt back. If it still waits for its prefill, its stage `withdrawn` tells `since` when,
        now or a little later: whoever is told that cancels the order. If all of its KVCache waits to be
        sent, none left out since its receiver held it, its stage is `unsent`, and it waits on for `redirect`.
        All else goes on."""
        ...

    def redirect(self, order: RedirectOrder) -> object:
        """Where the KVCache of an order that is `unsent` goes."""
        ...


class EngineClient(Protocol):
    """How a service asks an engine: over a socket, or in the same process when simulated."""

    def begin(self, path: str, order: EngineTask, tell: Tell, ended: Ended) -> OpenOrder:
        """Give an order, and be told how it goes.

        An order that is refused or fails, or whose engine goes away, ends with EngineError; this may raise
        it too. A request's whole way is told by calls, since in a simulation they are all it costs.
        """
        ...

    def stages(self, path: str, order: EngineTask) -> AsyncGenerator[dict[str, Any], None]:
        """Give an order; its stages as they come. Closing the iterator cancels the order.

        Raises EngineError when the order is refused or fails, or the engine goes away.
        """
        ...

    async def state(self) -> dict[str, Any]:
        """What the engine says of itself now (EngineStats). Raises EngineError."""
        ...


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
        self.waiting_s = 0.0
        """To the nanosecond: sums and differences of floats leave more behind."""
        self._waiting_s = 0.0
        self.computed_tokens, self.computing_s = 0, 0.0
        self.orders: set[str] = set()
        self.available = True
        """Whether it takes orders: it lives, and does not drain."""
        self.changes: dict[str, Engine] = {}
        """Where it enters itself, by name, whenever its view is no longer what it was: whoever looks at many
        lets them share one, and empties it. A call each time would cost more than the change."""
        self._alive, self._draining = True, False
        self._view: EngineView | None = None

    @property
    def alive(self) -> bool:
        return self._alive

    @alive.setter
    def alive(self, alive: bool) -> None:
        self._alive = alive
        self._now_available()

    @property
    def draining(self) -> bool:
        """Whether it takes nothing new, so that no policy sees it alive."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining = draining
        self._now_available()

    def _now_available(self) -> None:
        self.available = self._alive and not self._draining
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
            orders = len(self.orders)
            running = orders if orders < self.capacity else self.capacity
            self._view = EngineView(
                name=self.name,
                datacenter=self.datacenter,
                role=self.role,
                queued=orders - running,
                running=running,
                queued_tokens=self.waiting_tokens,
                queued_s=self.waiting_s,
                capacity=self.capacity,
                alive=self.available,
                prefill_s_per_token=self.computing_s / self.computed_tokens if self.computed_tokens else None,
            )
        return self._view

    def wait(self, prompt_tokens: int, prefill_s: float) -> None:
        """So much more is to be computed; or less."""
        self.waiting_tokens += prompt_tokens
        self._waiting_s = self._waiting_s + prefill_s if self.waiting_tokens else 0.0
        self.waiting_s = max(0.0, round(self._waiting_s, 9))
        self.changed()

    def changed(self) -> None:
        """Something that the view shows is different."""
        self._view = None
        self.changes[self.name] = self


class Hold:
    """An order that an engine has in hand, from now until it is released; its prompt tokens wait until they
    are computed."""

    __slots__ = ("_engine", "_prefill_s", "_prompt_tokens", "_request_id")

    def __init__(
        self, engine: Engine, request_id: str, prompt_tokens: int = 0, prefill_s: float = 0.0
    ) -> None:
        self._engine, self._request_id = engine, request_id
        self._prompt_tokens, self._prefill_s = prompt_tokens, prefill_s
        engine.orders.add(request_id)
        if prompt_tokens:
            engine.wait(prompt_tokens, prefill_s)
        else:
            engine.changed()

    def release(self) -> None:
        """The engine is done with it. Doing so twice is fine."""
        engine = self._engine
        if self._request_id in engine.orders:
            engine.orders.discard(self._request_id)
            engine.changed()
        if self._prompt_tokens:
            self.computed()

    def computed(self) -> None:
        """Its prompt waits no longer."""
        if self._prompt_tokens:
            self._engine.wait(-self._prompt_tokens, -self._prefill_s)
            self._prompt_tokens = 0
