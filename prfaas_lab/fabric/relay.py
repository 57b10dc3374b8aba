"""The `relay` shaper: links emulated between loopback addresses, for no privilege at all.

A relay accepts connections on an address of its own, carries their bytes through the same queues
as the `tun` shaper, and hands them to the real destination. Rate, delay and jitter of a direction
hold for all its connections together. Every connection is two, so a sender's TCP never meets the
path: there is no loss, no retransmission and no congestion control to be seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.packet_child import MAX_DIRECTIONS
from prfaas_lab.fabric.packet_process import PacketProcess
from prfaas_lab.fabric.shape import Counters, Shape
from prfaas_lab.fabric.tun import conditions

Direction = tuple[str, str]
"""(link, source): the bytes that leave datacenter `source` over `link`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RelayRoute:
    """A way from one datacenter to one destination, seen as an address to dial."""

    listen: tuple[str, int]
    """Where the relay listens, for those of the source datacenter: (loopback address, port)."""
    target: tuple[str, int]
    """Where the destination really listens."""
    forward: tuple[Direction, ...]
    """What bytes to the destination cross, in order; () is straight through."""
    backward: tuple[Direction, ...]
    """What bytes back cross, in order."""


class RelayShaper:
    """All routes of a network, in one process of its own."""

    name = "relay"

    def __init__(self, *, seed: int = 0) -> None:
        """`seed` decides how the jitter falls."""
        self._seed = seed
        self._process: PacketProcess | None = None
        self._slots: dict[Direction, int] = {}

    @property
    def pid(self) -> int | None:
        """The process that relays (for CPU accounting); None before `serve`."""
        return None if self._process is None else self._process.pid

    def check(self, shape: Shape) -> None:
        """Raises FabricError when this shaper cannot do what the shape asks."""
        for what in ("loss", "reorder", "duplicate", "corrupt"):
            if getattr(shape, what):
                raise FabricError(
                    f"the relay shaper cannot do {what}: it carries TCP streams, not packets",
                    remedy=f"drop {what}:, or run as root, where the tun or netem shaper works",
                )

    def serve(self, routes: Iterable[RelayRoute], shapes: Mapping[Direction, Shape]) -> None:
        """Shape the directions, then listen on every route. To be called once."""
        assert self._process is None, "serve is called once"
        for shape in shapes.values():
            self.check(shape)
        if len(shapes) > MAX_DIRECTIONS:
            raise FabricError(f"more than {MAX_DIRECTIONS} directions", remedy="use fewer links")
        self._process = PacketProcess(self.name, self._seed)
        self._slots = {direction: slot for slot, direction in enumerate(shapes)}
        for direction, shape in shapes.items():
            self.change(*direction, shape)
        for route in routes:
            self._listen(route)

    def change(self, link: str, source: str, shape: Shape) -> float:
        """One in-place change of one direction; the monotonic time at which it took effect."""
        self.check(shape)
        slot, process = self._find(link, source)
        return process.ask({"do": "change", "slot": slot, "conditions": conditions(shape)})

    def counters(self, link: str, source: str) -> Counters:
        """Totals of one direction since `serve`. Bytes count the headers that a packet network would
        add; a packet is what the relay moves at once."""
        slot, process = self._find(link, source)
        carried, packets, dropped, backlog = process.counters(slot)
        return Counters(
            bytes_total=carried, packets_total=packets, dropped_total=dropped, backlog_bytes=backlog
        )

    def close(self) -> None:
        """End the process, and with it every connection."""
        if self._process is not None:
            self._process.close()
        self._process = None
        self._slots.clear()

    def _listen(self, route: RelayRoute) -> None:
        assert self._process is not None
        request = {
            "do": "listen",
            "listen": route.listen,
            "target": route.target,
            "forward": [self._find(*direction)[0] for direction in route.forward],
            "backward": [self._find(*direction)[0] for direction in route.backward],
        }
        self._process.ask(request)

    def _find(self, link: str, source: str) -> tuple[int, PacketProcess]:
        slot = self._slots.get((link, source))
        if slot is None or self._process is None:
            raise FabricError(f"there is no link {link!r} with source {source!r}", where="relay shaper")
        return slot, self._process
