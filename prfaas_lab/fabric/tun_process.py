"""The packet loop of the `tun` shaper: a process of its own, started by `packet_process`.

It ends when its control socket closes, or when the process that started it dies.
"""

from __future__ import annotations

import gc
import math
import os
import select
import time
from random import Random
from typing import Any

from prfaas_lab.fabric.link_queue import Conditions, LinkQueue
from prfaas_lab.fabric.packet_child import Parent, be_prompt, publish
from prfaas_lab.fabric.tun_device import READ_BYTES, on_the_wire, set_offload

BATCH_PACKETS = 64
"""Packets read from one device before the others get their turn."""
REST_S = 1e-4
"""Pause after every pass that moved packets: they then come several at a time, for a third less
CPU time, and an RTT that is 0.1 ms longer."""


class Pump:
    """Reads one device, lets a queue decide, writes the other device."""

    def __init__(self, slot: int, source: int, sink: int, queue: LinkQueue[bytes]) -> None:
        self.slot, self.source, self.sink, self.queue = slot, source, sink, queue
        self._empty_at = time.monotonic()

    def read(self, now: float) -> None:
        offer, since = self.queue.offer, self._empty_at
        for _ in range(BATCH_PACKETS):
            try:
                packet = os.read(self.source, READ_BYTES)
            except BlockingIOError:
                self._empty_at = now
                return
            offer(packet, *on_the_wire(packet), now, since)

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
        self.by_device: dict[int, Pump] = {}

    def serve(self, request: dict[str, Any], devices: list[int]) -> None:
        """Do what a request of `TunShaper` says."""
        match request["do"]:
            case "attach":
                self._attach(request["link"], request["conditions"], request["offload"], devices)
            case "change":
                pump = self.by_slot[request["slot"]]
                pump.queue.change(Conditions(*request["conditions"]), time.monotonic())
                set_offload(pump.source, segmentation=request["offload"])

    def pass_packets(self, readable: list[int], now: float) -> bool:
        """Read what has come, write what is due. False when there was neither."""
        touched = {self.by_device[device] for device in readable if device in self.by_device}
        for pump in touched:
            pump.read(now)
        due = {pump for pump in self.by_slot.values() if pump.queue.next_due() <= now}
        for pump in due:
            pump.write(now)
        for pump in touched | due:
            publish(self._counters, pump.slot, pump.queue)
        return bool(touched or due)

    def next_due(self) -> float:
        return min((pump.queue.next_due() for pump in self.by_slot.values()), default=math.inf)

    def _attach(self, link: int, terms: list[list[Any]], offload: list[bool], devices: list[int]) -> None:
        for way in (0, 1):
            slot = 2 * link + way
            queue: LinkQueue[bytes] = LinkQueue(Conditions(*terms[way]), Random(self._seed + slot))
            pump = Pump(slot, devices[way], devices[1 - way], queue)
            set_offload(pump.source, segmentation=offload[way])
            self.by_slot[slot] = self.by_device[pump.source] = pump


def run(parent: Parent, pumps: Pumps) -> None:
    """Pump until nobody is left to pump for."""
    moved = False
    while not parent.gone:
        if moved:
            time.sleep(REST_S)
        due = pumps.next_due()
        wait_s = None if due == math.inf else max(0.0, due - time.monotonic())
        readable, _, _ = select.select([*parent.descriptors, *pumps.by_device], [], [], wait_s)
        parent.heed(readable, pumps.serve)
        moved = pumps.pass_packets(readable, time.monotonic())


def main() -> None:
    be_prompt()
    gc.disable()  # nothing here is cyclic
    parent = Parent()
    run(parent, Pumps(parent.counters, parent.seed))


if __name__ == "__main__":
    main()
