"""The two orders of a request, one at each of its engines, waited for as one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from prfaas_lab.lab.engines import EngineClient, OpenOrder
from prfaas_lab.lab.orders import EngineTask, RedirectOrder


class BothEnds:
    """Until both have ended, or one has failed. Whoever makes it cancels it."""

    __slots__ = ("_left", "_orders", "over")

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises what went wrong first, at an engine or with what it told."""
        self._left = 2
        self._orders: dict[str, OpenOrder] = {}
        """Those that go on. They know whom to tell, which is a circle: what has ended is let go at once."""

    def begin(
        self, client: EngineClient, path: str, order: EngineTask, take: Callable[[dict[str, Any]], None]
    ) -> None:
        """Give one of the orders; `take` is called with its stages. Raises EngineError when refused at
        once."""
        end = _End(self, path, take)
        self._orders[path] = client.begin(path, order, end.tell, end.ended)

    def enough(self, path: str) -> None:
        """No more is wanted of one of them."""
        self._orders.pop(path).cancel()
        self.ended(None)

    def withdraw(self, path: str) -> None:
        """Ask for one of them back, if it was given (OpenOrder.withdraw)."""
        if path in self._orders:
            self._orders[path].withdraw()

    def redirect(self, path: str, order: RedirectOrder) -> None:
        """Answer one that is unsent (OpenOrder.redirect)."""
        self._orders[path].redirect(order)

    def give_up(self, path: str) -> None:
        """One of them will be given anew."""
        self._orders.pop(path).cancel()

    def cancel(self) -> None:
        """Give up what still goes on."""
        for order in self._orders.values():
            order.cancel()
        self._orders.clear()

    def let_go(self, path: str) -> None:
        """One of them has ended well."""
        self._orders.pop(path, None)

    def ended(self, error: BaseException | None) -> None:
        """One of them has, or one has gone wrong."""
        self._left -= 1
        if self.over.done():
            return
        if error is not None:
            self.over.set_exception(error)
        elif not self._left:
            self.over.set_result(None)


class _End:
    """Whom the engine of one of the orders tells. (Two closures would be thrice as large, and there is one
    for each order in flight.)"""

    __slots__ = ("_ends", "_path", "_take")

    def __init__(self, ends: BothEnds, path: str, take: Callable[[dict[str, Any]], None]) -> None:
        self._ends, self._path, self._take = ends, path, take

    def tell(self, stage: dict[str, Any]) -> None:
        try:
            self._take(stage)
        except Exception as error:  # the request's, and not its engine's
            self._ends.ended(error)

    def ended(self, error: BaseException | None) -> None:
        if error is None:
            self._ends.let_go(self._path)
        self._ends.ended(error)
