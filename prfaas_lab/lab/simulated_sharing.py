"""Engines of one machine in a simulation: they share its cores, and what they send keeps their pace."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from prfaas_lab.engine.cores import Cores, CoreTimer
from prfaas_lab.fabric.fluid import Piece
from prfaas_lab.fabric.fluid_network import FluidNetwork
from prfaas_lab.fabric.fluid_transfer import Transfer

_PART_BYTES = 16 * 1024
"""Sent at once: about what a layer makes of a chunk, in the tiny models."""


class PartedTransfer:
    """KVCache that an engine makes while it shares cores: how long that takes shows only as it is made, so
    it is sent in parts, each when it is there. `cancel` gives it up."""

    def __init__(
        self, network: FluidNetwork, clock: Cores, pair: tuple[str, str], pieces: Sequence[Piece],
        on_arrived: Callable[[float], None],
    ) -> None:  # fmt: skip
        """Pieces are made one after the other from now on, in seconds of their engine's clock."""
        self._network, self._pair, self._on_arrived = network, pair, on_arrived
        parts = [part for seconds, size in pieces for part in _parts(seconds, size)]
        self._left, made_at = len(parts), clock.time()
        self._open: list[CoreTimer | Transfer] = []
        for seconds, size in parts:
            made_at += seconds
            self._open.append(clock.tell_at(made_at, self._send, size))

    @property
    def waits(self) -> bool:
        """Of parts that are sent as they are made, nobody asks: the first leaves at once."""
        return False

    def cancel(self) -> None:
        for each in self._open:
            each.cancel()

    def _send(self, size: int) -> None:
        self._open.append(self._network.send(*self._pair, [(0.0, size)], self._arrived))

    def _arrived(self, back_s: float) -> None:
        self._left -= 1
        if not self._left:
            self._on_arrived(back_s)


def _parts(seconds: float, size: int) -> list[Piece]:
    """One piece in parts of nearly the same size."""
    count = max(1, math.ceil(size / _PART_BYTES))
    return [(seconds / count, size * (i + 1) // count - size * i // count) for i in range(count)]
