"""One end of a Mooncake transfer, run as a script by an interpreter that has Mooncake and not us.

`python mooncake_peer.py receive|send HOST`. The same lines of JSON as `transfer_peer`.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mooncake.engine import TransferEngine  # type: ignore[import-not-found]

BUFFER_BYTES = 256 * 2**20


def main(role: str, host: str) -> None:
    engine = TransferEngine()
    if engine.initialize(host, "P2PHANDSHAKE", "tcp", "") != 0:
        raise SystemExit("mooncake did not start")
    memory = (ctypes.c_char * BUFFER_BYTES)()
    address = ctypes.addressof(memory)
    if engine.register_memory(address, BUFFER_BYTES) != 0:
        raise SystemExit("mooncake did not take the memory")
    say({"segment": f"{host}:{engine.get_rpc_port()}", "address": address})
    for line in sys.stdin:
        order = json.loads(line)
        began_at, cpu_s = time.monotonic(), cpu()
        if role == "send":
            send(engine, address, order)
            say({"seconds": time.monotonic() - began_at, "cpu_s": cpu() - cpu_s})
        else:
            say({"cpu_s": cpu()})


def send(engine: Any, address: int, order: dict[str, Any]) -> None:
    """`transfers` of them, `depth` at a time, each lane from and to memory of its own."""
    sizes, total = order["sizes"], sum(order["sizes"])
    starts = [sum(sizes[:index]) for index in range(len(sizes))]

    def lane(first: int) -> None:
        here = [address + first * total + start for start in starts]
        there = [order["address"] + first * total + start for start in starts]
        for _ in range(first, order["transfers"], order["depth"]):
            status = engine.batch_transfer_sync_write(order["segment"], here, there, sizes)
            if status != 0:
                raise SystemExit(f"a transfer failed with status {status}")

    with ThreadPoolExecutor(order["depth"]) as lanes:
        list(lanes.map(lane, range(order["depth"])))


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
