"""The packet loop of the `tun` shaper: a process of its own, started by `packet_process`.

It ends when its control socket closes, or when the process that started it dies.
"""

from __future__ import annotations

import gc
import math
import os
import select
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from prfaas_lab.fabric.link_queue import Conditions, LinkQueue
from prfaas_lab.fabric.packet_child import Parent, allow_descriptors, be_prompt, publish
from prfaas_lab.fabric.tun_device import READ_BYTES, on_the_wire, ring_drops, set_offload

BATCH_PACKETS = 64
"""Packets read from one device before the others get their turn."""
REST_S = 1e-4
"""Pause after every pass that moved packets: they then come several at a time, for a third less
CPU time, and an RTT that is 0.1 ms longer."""
DROPS_EVERY_S = 0.05


class Pump:
    """Reads one device, lets a queue decide, writes the other device."""

    def __init__(
        self, slot: int, source: int, sink: int, queue: LinkQueue[bytes], count_drops: Callable[[], int]
    ) -> None:
        self.slot, self.source, self.sink, self.queue = slot, source, sink, queue
        self.ring_drops, self._count_drops = 0, count_drops
        self._offloads = False  # as the device was made
        self._empty_at = self._counted_at = time.monotonic()

    def offload(self, wanted: bool) -> None:
        """Let bundles through, or not. Only asked of the kernel when it differs: that takes its global
        network lock, and whoever makes or deletes namespaces holds it for tens of milliseconds."""
        if wanted is not self._offloads:
            set_offload(self.source, segmentation=wanted)
            self._offloads = wanted

    def read(self, now: float) -> None:
        """Take what has come. Raises OSError when the device is no more."""
        offer, since = self.queue.offer, self._empty_at
        for _ in range(BATCH_PACKETS):
            try:
                packet = os.read(self.source, READ_BYTES)
            except BlockingIOError:
                self._empty_at = now
                return
            offer(packet, *on_the_wire(packet), now, since)

    def look_for_drops(self, now: float) -> None:
        """Count what the kernel dropped since we last looked, now and then."""
        if now - self._counted_at >= DROPS_EVERY_S:
            self.ring_drops, self._counted_at = self._count_drops(), now

    def write(self, now: float) -> None:
        for packet in self.queue.release(now):
            try:
                os.write(self.sink, packet)
            except OSError:  # the far interface is down
                self.queue.undelivered(*on_the_wire(packet))


class Pumps:
    """All directions of all links, by slot: twice the link's number, plus one for backward."""

    def __init__(self, counters: memoryview, seed: int) -> None:
        self._counters, self._seed = counters, seed
        self.by_slot: dict[int, Pump] = {}
        self._by_device: dict[int, Pump] = {}
        self._epoll = select.epoll()

    @property
    def descriptor(self) -> int:
        """Readable when a device has a packet for us. (One, for select takes no number above 1023.)"""
        return self._epoll.fileno()

    def serve(self, request: dict[str, Any], devices: list[int]) -> None:
        """Do what a request of `TunShaper` says."""
        match request["do"]:
            case "attach":
                self._attach(request, devices)
            case "change":
                self._change(self.by_slot[request["slot"]], request)

    def pass_packets(self, now: float) -> bool:
        """Read what has come, write what is due. False when there was neither."""
        touched = {self._by_device[device] for device, _ in self._epoll.poll(0)}
        for pump in touched:
            try:
                pump.read(now)
            except OSError:  # the namespace was deleted, and the device with it
                self._epoll.unregister(pump.source)
        due = {pump for pump in self.by_slot.values() if pump.queue.next_due() <= now}
        for pump in due:
            pump.write(now)
        for pump in touched | due:
            pump.look_for_drops(now)
            self._publish(pump)
        return bool(touched or due)

    def next_due(self) -> float:
        return min((pump.queue.next_due() for pump in self.by_slot.values()), default=math.inf)

    def _change(self, pump: Pump, request: dict[str, Any]) -> None:
        now = time.monotonic()
        pump.write(now)  # what crossed before the answer is counted before the answer
        pump.queue.change(Conditions(*request["conditions"]), now)
        pump.offload(request["offload"])
        self._publish(pump)

    def _publish(self, pump: Pump) -> None:
        publish(self._counters, pump.slot, pump.queue, dropped_before=pump.ring_drops)

    def _attach(self, request: dict[str, Any], descriptors: list[int]) -> None:
        devices, statistics = descriptors[0::2], descriptors[1::2]
        for way in (0, 1):
            slot = 2 * request["link"] + way
            terms = Conditions(*request["conditions"][way])
            queue: LinkQueue[bytes] = LinkQueue(terms, Random(self._seed + slot))
            count_drops = partial(ring_drops, statistics[way], request["interfaces"][way])
            pump = Pump(slot, devices[way], devices[1 - way], queue, count_drops)
            pump.offload(request["offload"][way])
            self.by_slot[slot] = self._by_device[pump.source] = pump
            self._epoll.register(pump.source, select.EPOLLIN)


def run(parent: Parent, pumps: Pumps) -> None:
    """Pump until nobody is left to pump for."""
    moved = False
    while not parent.gone:
        if moved:
            time.sleep(REST_S)
        due = pumps.next_due()
        wait_s = None if due == math.inf else max(0.0, due - time.monotonic())
        readable, _, _ = select.select([*parent.descriptors, pumps.descriptor], [], [], wait_s)
        parent.heed(readable, pumps.serve)
        moved = pumps.pass_packets(time.monotonic())


def main() -> None:
    be_prompt()
    allow_descriptors()
    gc.disable()  # nothing here is cyclic
    parent = Parent()
    run(parent, Pumps(parent.counters, parent.seed))


if __name__ == "__main__":
    main()
