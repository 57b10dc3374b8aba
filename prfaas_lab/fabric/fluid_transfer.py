"""A transfer over a fluid network: in its pair's line, over its links, and the last byte's way after that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from prfaas_lab.fabric.fluid import Flow, Fluid, Piece
from prfaas_lab.fabric.fluid_lane import HAIR_S
from prfaas_lab.fabric.fluid_tcp import late

Direction = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Path:
    """The way of every transfer between two nodes: one object each, so that it is quickly looked up."""

    here: str
    """The sender's datacenter."""
    route: tuple[object, ...]
    there: tuple[Direction, ...]
    back: tuple[Direction, ...]
    intra_s: float
    """Delay of the engines' own links, one way."""


class Network(Protocol):
    """What a transfer must know of the network that it crosses."""

    fluid: Fluid
    last: dict[tuple[str, str], Transfer]
    """Of each pair of engines, who came last to its line and is not sent."""

    def most(self, path: Path) -> float:
        """Bytes/s that one transfer can have at best."""

    def delays(self, path: Path) -> tuple[float, float]:
        """Seconds there, and back."""


class Transfer:
    """KVCache on its way; `cancel` gives it up.

    A pair of engines has one line: what comes waits until all before it that is made has been sent (the
    transport's `fifo`). What is still being made leaves room, and is not waited for."""

    __slots__ = (
        "_flow", "_made", "_made_at", "_network", "_next", "_on_arrived", "_over", "_pair", "_path", "_timer",
    )  # fmt: skip

    def __init__(
        self, network: Network, pair: tuple[str, str], path: Path, on_arrived: Callable[[float], None]
    ) -> None:
        self._network, self._pair, self._path, self._on_arrived = network, pair, path, on_arrived
        self._flow: Flow | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._next: Transfer | None = None
        self._made: list[Piece] = []
        self._made_at = 0.0
        self._over = False

    @property
    def waits(self) -> bool:
        """It is in line behind others, and nothing of it has been sent."""
        return not self._over and self._flow is None and self._timer is None

    def cancel(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._flow is not None:
            self._network.fluid.cancel(self._flow)
        if self._timer is not None or self._flow is not None:  # else those ahead find it over in its turn
            self._flow = None
            self._leave()

    def queue(self, made: list[Piece], after_s: float) -> None:
        """Send what is made from now on, over a path that has links: in its turn, at the earliest after
        so many seconds."""
        network, now = self._network, asyncio.get_running_loop().time()
        ahead = network.last.get(self._pair)
        network.last[self._pair] = self
        self._made, self._made_at = made, now + sum([seconds for seconds, _ in made])
        if ahead is not None and ahead._made_at <= now + HAIR_S:
            ahead._next = self
        elif after_s > 0.0:
            self._timer = asyncio.get_running_loop().call_later(after_s, self._begin)
        else:
            self._begin()

    def arrive(self, after_s: float) -> None:
        """The last byte leaves then."""
        there_s, back_s = self._network.delays(self._path)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(after_s + there_s, self._on_arrived, back_s)

    def _begin(self) -> None:
        self._timer = None  # it knows us: a circle that only a collection would end
        network, path = self._network, self._path
        self._flow = network.fluid.send(path.route, self._left(), self._sent, most=network.most(path))

    def _left(self) -> list[Piece]:
        """What was made while it waited, and what still is to be."""
        making_s = sum([seconds for seconds, _ in self._made])
        waited_s = asyncio.get_running_loop().time() - (self._made_at - making_s)
        return late(self._made, waited_s) if waited_s > 0.0 else self._made

    def _sent(self) -> None:
        self._flow = None
        self._leave()
        self.arrive(0.0)

    def _leave(self) -> None:
        """The next in line that is wanted has its turn."""
        network, leaving = self._network, self
        while True:
            if network.last.get(self._pair) is leaving:
                del network.last[self._pair]
            following, leaving._next = leaving._next, None
            if following is None or not following._over:
                break
            leaving = following
        if following is not None:
            following._begin()
