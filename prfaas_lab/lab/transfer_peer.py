"""One end of the transfer bench, in a process of its own: `python -m ... receive|send SETTINGS`.

Reads orders as lines of JSON and answers each with one line. Payloads are random bytes; a transfer
is a list of segments, each with the time at which its producer has it ready.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import uvloop
import xxhash

from prfaas_lab.errors import TransportError
from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.transport import Incoming, KVReceiver, KVSender, Limits, PathHint, Received
from prfaas_lab.transport.outgoing import Sent

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings:
    """What both ends are started with."""

    host: str
    key: str
    connections: int | None = None
    rate_bps: float | None = None
    rtt_s: float | None = None
    tuning: dict[str, Any] = field(default_factory=dict)
    """Fields of `Limits` to set otherwise than by default."""

    @property
    def limits(self) -> Limits:
        path = None
        if self.rate_bps and self.rtt_s:
            path = PathHint(rate_bps=self.rate_bps, rtt_s=self.rtt_s)
        return replace(Limits(connections=self.connections, path=path), **self.tuning)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Transfers to make: `transfers` of them, `depth` at a time, all of the same shape."""

    name: str
    sizes: Sequence[int]
    transfers: int
    depth: int = 1
    ready_s: Sequence[float] = ()
    """When each segment is ready, from the start of its transfer; empty: all at once."""
    verify_each: bool = False
    """Clear the memory before each transfer, and digest it after each (costs time)."""
    kill_every_s: float = 0.0
    """Let the receiver cut one of its connections this often; 0: never."""
    port: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes)

    @property
    def offsets(self) -> list[int]:
        return [0, *itertools.accumulate(self.sizes)][:-1]


async def receive(settings: PeerSettings) -> None:
    receiver = KVReceiver(
        key=bytes.fromhex(settings.key), fingerprint=bytes(32), settings=settings.limits, clock=time.monotonic
    )
    await receiver.start(settings.host, 0)
    _say({"port": receiver.port})
    try:
        while (order := await _next_order()) is not None:
            await _receive_all(receiver, order)
    finally:
        await receiver.close()


async def _receive_all(receiver: KVReceiver, order: Order) -> None:
    """Each of `depth` lanes takes its transfers into two places in turn: while one is looked at, the
    sender, which knows that the transfer is whole as soon as we do, may already fill the other."""
    places = 2 * order.depth
    slots = [memoryview(bytearray(order.total_bytes)) for _ in range(min(places, order.transfers))]
    offsets, sizes, clean = order.offsets, order.sizes, bytes(order.total_bytes if order.verify_each else 0)
    killed: list[int] = []

    def sink(slot: memoryview, key: SegmentKey, size: int) -> memoryview:
        if size != sizes[key.chunk]:
            raise ValueError(f"{size} bytes, not {sizes[key.chunk]}")
        return slot[offsets[key.chunk] : offsets[key.chunk] + size]

    async def take(incoming: Incoming, slot: memoryview) -> tuple[Received, str]:
        received = await incoming.done()
        found = xxhash.xxh3_64_hexdigest(slot) if order.verify_each else ""
        slot[: len(clean)] = clean
        return received, found

    async with asyncio.TaskGroup() as group:
        takers = []
        for number in range(order.transfers):
            slot = slots[number % places]
            incoming = receiver.expect(f"{order.name}-{number}", partial(sink, slot))
            takers.append(group.create_task(take(incoming, slot)))
        _say({"expecting": order.transfers})
        killer = group.create_task(_kill_connections(receiver, order.kill_every_s, killed))
        cpu_s = _cpu_s()
        taken = [await taker for taker in takers]
        killer.cancel()
    digests = (
        {found for _, found in taken} if order.verify_each else {xxhash.xxh3_64_hexdigest(s) for s in slots}
    )
    _say(
        {
            "bytes": sum(received.bytes for received, _ in taken),
            "last_byte_at": [received.last_byte_at for received, _ in taken],
            "retried": sum(received.retried for received, _ in taken),
            "killed": len(killed),
            "cpu_s": _cpu_s() - cpu_s,
            "digests": sorted(digests),
        }
    )


async def _kill_connections(receiver: KVReceiver, every_s: float, killed: list[int]) -> None:
    """Cut one connection after another, as a dying middlebox does: no word to either side."""
    while every_s:
        await asyncio.sleep(every_s)
        inlets = sorted(receiver.inlets, key=id)
        if inlets:
            receiver.lost(inlets[len(killed) % len(inlets)], TransportError("cut by the bench"))
            killed.append(len(inlets))


async def send(settings: PeerSettings) -> None:
    sender = KVSender(
        key=bytes.fromhex(settings.key), fingerprint=bytes(32), settings=settings.limits, clock=time.monotonic
    )
    _say({"ready": True})
    try:
        while (order := await _next_order()) is not None:
            _say(await _send_all(sender, (settings.host, order.port), order))
    finally:
        await sender.close()


async def _send_all(sender: KVSender, peer: tuple[str, int], order: Order) -> Answer:
    payload = memoryview(os.urandom(order.total_bytes))
    runs: list[tuple[float, Sent]] = []
    cpu_s, began_at = _cpu_s(), time.monotonic()

    async def lane(first: int) -> None:
        for number in range(first, order.transfers, order.depth):
            run = await _send_one(sender, peer, order, number, payload)
            runs.append(run)

    async with asyncio.TaskGroup() as lanes:
        for first in range(order.depth):
            lanes.create_task(lane(first))
    return {
        "seconds": time.monotonic() - began_at,
        "cpu_s": _cpu_s() - cpu_s,
        "prefill_done_at": [at for at, _ in runs],
        "sent": [asdict(sent) for _, sent in runs],
        "retried": sum(sent.retried for _, sent in runs),
        "digest": xxhash.xxh3_64_hexdigest(payload),
        "path": asdict(sender.paths()[peer]) if peer in sender.paths() else None,
    }


async def _send_one(
    sender: KVSender, peer: tuple[str, int], order: Order, number: int, payload: memoryview
) -> tuple[float, Sent]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    outgoing = await sender.open(f"{order.name}-{number}", peer)
    ready = order.ready_s or [0.0] * len(order.sizes)
    for index, (offset, size, ready_s) in enumerate(zip(order.offsets, order.sizes, ready, strict=True)):
        if (wait_s := began + ready_s - loop.time()) > 0:
            await asyncio.sleep(wait_s)
        outgoing.send(SegmentKey(0, 0, index), payload[offset : offset + size])
    prefill_done_at = time.monotonic()
    return prefill_done_at, await outgoing.finish()


async def _next_order() -> Order | None:
    line = await asyncio.to_thread(sys.stdin.readline)
    return Order(**json.loads(line)) if line.strip() else None


def _say(answer: Answer) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(role: str, settings: str) -> None:
    gc.freeze()  # what was imported is here to stay: no collection need look at it again
    uvloop.run({"receive": receive, "send": send}[role](PeerSettings(**json.loads(settings))))


if __name__ == "__main__":
    main(*sys.argv[1:])
