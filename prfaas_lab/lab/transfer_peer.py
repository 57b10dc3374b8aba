"""One end of the transfer bench, in a process of its own: `python -m ... receive|send SETTINGS`.

Reads orders as lines of JSON and answers each with one line. Payloads are random bytes; a transfer
is a list of segments, each with the time at which its producer has it ready.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import uvloop
import xxhash

from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.transport import KVReceiver, KVSender, Limits, PathHint
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
    port: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes)

    @property
    def offsets(self) -> list[int]:
        offsets, end = [], 0
        for size in self.sizes:
            offsets.append(end)
            end += size
        return offsets


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
    """Each of `depth` slots of memory takes one transfer after the other."""
    slots = [memoryview(bytearray(order.total_bytes)) for _ in range(order.depth)]
    offsets, sizes = order.offsets, order.sizes

    def sink(slot: memoryview, key: SegmentKey, size: int) -> memoryview:
        if size != sizes[key.chunk]:
            raise ValueError(f"{size} bytes, not {sizes[key.chunk]}")
        return slot[offsets[key.chunk] : offsets[key.chunk] + size]

    expected = []
    for number in range(order.transfers):
        slot = slots[number % order.depth]
        expected.append(receiver.expect(f"{order.name}-{number}", partial(sink, slot)))
    _say({"expecting": order.transfers})
    cpu_s = _cpu_s()
    received = [await incoming.done() for incoming in expected]
    _say(
        {
            "bytes": sum(r.bytes for r in received),
            "last_byte_at": [r.last_byte_at for r in received],
            "retried": sum(r.retried for r in received),
            "cpu_s": _cpu_s() - cpu_s,
            "digests": [xxhash.xxh3_64_hexdigest(slot) for slot in slots[: order.transfers]],
        }
    )


async def send(settings: PeerSettings) -> None:
    sender = KVSender(
        key=bytes.fromhex(settings.key), fingerprint=bytes(32), settings=settings.limits, clock=time.monotonic
    )
    try:
        while (order := await _next_order()) is not None:
            _say(await _send_all(sender, (settings.host, order.port), order))
    finally:
        await sender.close()


async def _send_all(sender: KVSender, peer: tuple[str, int], order: Order) -> Answer:
    payload = memoryview(random.Random(order.total_bytes).randbytes(order.total_bytes))
    numbers = iter(range(order.transfers))
    cpu_s, began_at = _cpu_s(), time.monotonic()
    runs: list[tuple[float, Sent]] = []

    async def lane() -> None:
        for number in numbers:
            run = await _send_one(sender, peer, order, number, payload)
            runs.append(run)

    async with asyncio.TaskGroup() as lanes:
        for _ in range(order.depth):
            lanes.create_task(lane())
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
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    uvloop.run({"receive": receive, "send": send}[role](PeerSettings(**json.loads(settings))))


if __name__ == "__main__":
    main(*sys.argv[1:])
