"""The packet loop of the `tun` shaper: a process of its own, started by `tun_control`.

Takes requests on a socket that it inherits (JSON, one per datagram; device descriptors beside
them), answers each, and publishes every direction's counters in shared memory. It ends when
the socket closes, or when the process that started it dies. Standard library only, so
that it starts at once and stays small.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import mmap
import os
import select
import socket
import sys
import time
from random import Random
from typing import Any

from prfaas_lab.fabric.tun_device import READ_BYTES, on_the_wire, set_offload
from prfaas_lab.fabric.tun_queue import Conditions, LinkQueue

BATCH_PACKETS = 64
"""Packets read from one device before the others get their turn."""
REST_S = 1e-4
"""Pause after every pass that moved packets: they then come several at a time, for a third less
CPU time, and an RTT that is 0.1 ms longer."""
COUNTER_FIELDS = 4
MESSAGE_BYTES = 65536
_PR_SET_TIMERSLACK = 29


class Pump:
    """Reads one device, lets a queue decide, writes the other device."""

    def __init__(self, source: int, sink: int, queue: LinkQueue, counters: memoryview, slot: int) -> None:
        self.source, self.sink, self.queue = source, sink, queue
        self._counters, self._first = counters, slot * COUNTER_FIELDS
        self._empty_at = time.monotonic()
        self._undeliverable = 0

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
                self._undeliverable += 1

    def publish(self) -> None:
        queue, counters, i = self.queue, self._counters, self._first
        counters[i] = queue.bytes_total
        counters[i + 1] = queue.packets_total
        counters[i + 2] = queue.dropped_total + self._undeliverable
        counters[i + 3] = queue.backlog_bytes


class Pumps:
    """All directions of all links, by slot: twice the link's number, plus one for backward."""

    def __init__(self, counters: memoryview, seed: int) -> None:
        self._counters, self._seed = counters, seed
        self.by_slot: dict[int, Pump] = {}
        self.by_device: dict[int, Pump] = {}

    def attach(
        self, link: int, conditions: list[Conditions], offload: list[bool], devices: list[int]
    ) -> None:
        for way in (0, 1):
            slot = 2 * link + way
            queue = LinkQueue(conditions[way], Random(self._seed + slot))
            pump = Pump(devices[way], devices[1 - way], queue, self._counters, slot)
            set_offload(pump.source, segmentation=offload[way])
            self.by_slot[slot] = self.by_device[pump.source] = pump

    def change(self, slot: int, conditions: Conditions, offload: bool) -> None:
        pump = self.by_slot[slot]
        pump.queue.change(conditions, time.monotonic())
        set_offload(pump.source, segmentation=offload)

    def pass_packets(self, readable: list[int], now: float) -> bool:
        """Read what has come, write what is due. False when there was neither."""
        touched = {self.by_device[device] for device in readable}
        for pump in touched:
            pump.read(now)
        due = {pump for pump in self.by_slot.values() if pump.queue.next_due() <= now}
        for pump in due:
            pump.write(now)
        for pump in touched | due:
            pump.publish()
        return bool(touched or due)

    def next_due(self) -> float:
        return min((pump.queue.next_due() for pump in self.by_slot.values()), default=math.inf)


def run(control: socket.socket, parent: int, pumps: Pumps) -> None:
    """Pump until told to stop, or until nobody is left to tell."""
    moved = False
    while True:
        if moved:
            time.sleep(REST_S)
        due = pumps.next_due()
        wait_s = None if due == math.inf else max(0.0, due - time.monotonic())
        readable, _, _ = select.select([control.fileno(), parent, *pumps.by_device], [], [], wait_s)
        if control.fileno() in readable:
            readable.remove(control.fileno())
            if not _serve(control, pumps):
                return
        if parent in readable:
            return
        moved = pumps.pass_packets(readable, time.monotonic())


def _serve(control: socket.socket, pumps: Pumps) -> bool:
    """One request. False when the other side has closed."""
    message, devices, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 2)
    if not message:
        return False
    request: dict[str, Any] = json.loads(message)
    conditions = [Conditions(*terms) for terms in request.get("conditions", ())]
    match request["do"]:
        case "attach":
            pumps.attach(request["link"], conditions, request["offload"], devices)
        case "change":
            pumps.change(request["slot"], conditions[0], request["offload"])
    control.send(json.dumps({"at": time.monotonic()}).encode())
    return True


def _be_prompt() -> None:
    """Wake on time: exact timers, ahead of busy engines where that is allowed, no collector.

    Real-time priority keeps wake-ups within 0.5 ms beside any load (4-6 ms otherwise), but a lone
    CPU would be left to nobody else when packets are many.
    """
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        if len(os.sched_getaffinity(0)) > 1:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    gc.disable()


def main() -> None:
    """argv: the control socket, the counters' file, the starter's pid, the seed."""
    control_fd, counters_fd, parent_pid, seed = map(int, sys.argv[1:5])
    _be_prompt()
    parent = os.pidfd_open(parent_pid)
    if os.getppid() != parent_pid:
        return
    counters = memoryview(mmap.mmap(counters_fd, 0)).cast("Q")
    run(socket.socket(fileno=control_fd), parent, Pumps(counters, seed))


if __name__ == "__main__":
    main()
