"""The `tun` shaper: links emulated in user space between TUN devices, under real kernel TCP."""

from __future__ import annotations

import os

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.link_queue import Conditions
from prfaas_lab.fabric.packet_child import MAX_DIRECTIONS
from prfaas_lab.fabric.packet_process import PacketProcess
from prfaas_lab.fabric.shape import Counters, LinkEnds, Shape
from prfaas_lab.fabric.tun_device import open_tun
from prfaas_lab.spec.topology import GilbertElliott

OFFLOAD_BYTES = 65536
"""The largest packet that segmentation offload hands us."""
OFFLOAD_RATE_BPS = 50e6
"""From here on the kernel's own sizing keeps a bundle to about 1 ms of the sender's rate."""


class TunShaper:
    """Every link is a pair of TUN devices; one process of its own carries the packets of all."""

    name = "tun"

    def __init__(self, *, seed: int = 0) -> None:
        """`seed` decides which packets are lost and how the jitter falls."""
        self._seed = seed
        self._process: PacketProcess | None = None
        self._slots: dict[tuple[str, str], int] = {}

    @property
    def pid(self) -> int | None:
        """The process that carries the packets (for CPU accounting); None before the first link."""
        return None if self._process is None else self._process.pid

    def check(self, shape: Shape) -> None:
        """Raises FabricError when this shaper cannot do what the shape asks."""
        for what in ("reorder", "duplicate", "corrupt"):
            if getattr(shape, what):
                raise FabricError(
                    f"the tun shaper cannot {what} packets",
                    remedy=f"drop {what}:, or use a kernel with netem (`vagrant up`, or scripts/vm-test)",
                )

    def attach(self, link: LinkEnds, forward: Shape, backward: Shape) -> None:
        """Make a TUN device in both gateways, up and addressed, and pump between them."""
        self.check(forward)
        self.check(backward)
        number = len(self._slots) // 2
        if 2 * number == MAX_DIRECTIONS:
            raise FabricError(f"more than {number} links", where=link.name, remedy="use fewer links")
        if self._process is None:
            self._process = PacketProcess(self.name, self._seed)
        self._hand_over(number, link, (forward, backward))
        for way, end in enumerate(link.ends):
            self._slots[link.name, end.datacenter] = 2 * number + way

    def change(self, link: str, source: str, shape: Shape) -> float:
        """One in-place change of one direction; the monotonic time at which it took effect.

        What is queued keeps its order and drains at the new rate; what already flies keeps its delay.
        """
        self.check(shape)
        slot, process = self._find(link, source)
        return process.ask(
            {"do": "change", "slot": slot, "conditions": conditions(shape), "offload": offloads(shape)}
        )

    def counters(self, link: str, source: str) -> Counters:
        """Totals of one direction since `attach`, without asking the process."""
        slot, process = self._find(link, source)
        carried, packets, dropped, backlog = process.counters(slot)
        return Counters(
            bytes_total=carried, packets_total=packets, dropped_total=dropped, backlog_bytes=backlog
        )

    def close(self) -> None:
        """End the process. The devices vanish with it."""
        if self._process is not None:
            self._process.close()
        self._process = None
        self._slots.clear()

    def _hand_over(self, number: int, link: LinkEnds, shapes: tuple[Shape, Shape]) -> None:
        """Make the devices and give them to the process; our copies of them are closed again."""
        assert self._process is not None
        request = {
            "do": "attach",
            "link": number,
            "interfaces": [end.interface for end in link.ends],
            "conditions": [conditions(shape) for shape in shapes],
            "offload": [offloads(shape) for shape in shapes],
        }
        opened: list[int] = []
        try:
            for end in link.ends:
                opened += open_tun(end.netns, end.interface, end.address)
            self._process.ask(request, tuple(opened))
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _find(self, link: str, source: str) -> tuple[int, PacketProcess]:
        slot = self._slots.get((link, source))
        if slot is None or self._process is None:
            raise FabricError(f"there is no link {link!r} with source {source!r}", where="tun shaper")
        return slot, self._process


def offloads(shape: Shape) -> bool:
    """Whether packets may come in bundles of up to 64 KiB: cheap, but lost, queued and delivered as
    one. Only where nothing is lost, a bundle is a short burst, and the queue holds many of them."""
    if shape.loss:
        return False
    if shape.limit_bytes is not None and shape.limit_bytes < 8 * OFFLOAD_BYTES:
        return False
    return shape.rate_bps is None or shape.rate_bps >= OFFLOAD_RATE_BPS


def conditions(shape: Shape) -> Conditions:
    """A shape as the queue takes it."""
    loss = shape.loss
    if not isinstance(loss, GilbertElliott):
        loss = GilbertElliott(p=0.0, r=1.0, loss_good=loss, loss_bad=loss)
    return Conditions(
        rate_bps=shape.rate_bps,
        delay_s=shape.delay_s,
        jitter_s=shape.jitter_s,
        distribution=shape.distribution,
        correlation=shape.delay_correlation,
        loss_good=loss.loss_good,
        loss_bad=loss.loss_bad,
        good_to_bad=loss.p,
        bad_to_good=loss.r,
        limit_bytes=shape.limit_bytes,
    )
