"""Who can carry a shape from one namespace to another: our transport, iperf3 and Mooncake."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prfaas_lab.errors import LabError
from prfaas_lab.fabric.plan import Node
from prfaas_lab.lab.transfer_child import Child, child, inside

_SLOWEST_BPS = 1e6
"""No measurement may take longer than its bytes need at this rate (and a minute)."""
_IPERF_PORT = "5201"
_MOONCAKE_PEER = Path(__file__).with_name("mooncake_peer.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one runner made of one shape."""

    goodput_bps: float
    cpu_s_per_gb: float
    """Of both ends together."""
    retried: int = 0
    killed: int = 0
    exposed_s: float | None = None
    available_bps: float | None = None
    """Our transport's own estimate of the path at the end."""


class OurTransport:
    """A KVReceiver and a KVSender, each in a process of its own, with pooled connections."""

    def __init__(self, receiver: Child, sender: Child, port: int) -> None:
        self._receiver, self._sender, self._port = receiver, sender, port

    @classmethod
    @contextlib.asynccontextmanager
    async def up(
        cls, source: Node, destination: Node, settings: dict[str, Any]
    ) -> AsyncIterator[OurTransport]:
        """`settings` as in `transfer_peer.PeerSettings`; host and key are filled in."""
        text = json.dumps({**settings, "host": destination.address, "key": secrets.token_hex(32)})
        module = (sys.executable, "-m", "prfaas_lab.lab.transfer_peer")
        async with contextlib.AsyncExitStack() as stack:
            receiver, ready = await stack.enter_async_context(
                child("the receiver", _netns(destination), *module, "receive", text)
            )
            sender, _ = await stack.enter_async_context(
                child("the sender", _netns(source), *module, "send", text)
            )
            yield cls(receiver, sender, ready["port"])

    async def run(self, name: str, sizes: tuple[int, ...], transfers: int, **order: Any) -> Measured:
        """Raises LabError when what arrived is not what was sent."""
        order = {"name": name, "sizes": sizes, "transfers": transfers, "port": self._port, **order}
        deadline_s = 60 + sum(sizes) * transfers * 8 / _SLOWEST_BPS
        await self._receiver.tell(order)
        await self._receiver.answer(60)
        await self._sender.tell(order)
        sent = await self._sender.answer(deadline_s)
        received = await self._receiver.answer(60)
        if received["bytes"] != sum(sizes) * transfers:
            raise LabError(f"{name}: {received['bytes']} bytes arrived of {sum(sizes) * transfers}")
        if received["digests"] != [sent["digest"]]:
            raise LabError(f"{name}: what arrived is not what was sent")
        exposed = [
            max(0.0, last - done)
            for last, done in zip(received["last_byte_at"], sent["prefill_done_at"], strict=True)
        ]
        return Measured(
            goodput_bps=received["bytes"] * 8 / sent["seconds"],
            cpu_s_per_gb=(sent["cpu_s"] + received["cpu_s"]) * 1e9 / received["bytes"],
            retried=received["retried"] + sent["retried"],
            killed=received["killed"],
            exposed_s=max(exposed),
            available_bps=(sent["path"] or {}).get("available_bps"),
        )


class Mooncake:
    """The Mooncake transfer engine over TCP, in an environment of its own."""

    def __init__(self, sender: Child, target: dict[str, Any]) -> None:
        self._sender, self._target = sender, target

    @classmethod
    @contextlib.asynccontextmanager
    async def up(cls, source: Node, destination: Node, python: Path) -> AsyncIterator[Mooncake]:
        script = (str(python), str(_MOONCAKE_PEER))
        async with contextlib.AsyncExitStack() as stack:
            _, target = await stack.enter_async_context(
                child("Mooncake's receiver", _netns(destination), *script, "receive", destination.address)
            )
            sender, _ = await stack.enter_async_context(
                child("Mooncake's sender", _netns(source), *script, "send", source.address)
            )
            yield cls(sender, target)

    async def run(self, sizes: tuple[int, ...], transfers: int, depth: int) -> Measured:
        """Its receiver's CPU is not counted: it works in threads that we cannot tell from waiting."""
        total_bytes = sum(sizes) * transfers
        await self._sender.tell({"sizes": sizes, "transfers": transfers, "depth": depth, **self._target})
        answer = await self._sender.answer(60 + total_bytes * 8 / _SLOWEST_BPS)
        return Measured(
            goodput_bps=total_bytes * 8 / answer["seconds"],
            cpu_s_per_gb=answer["cpu_s"] * 1e9 / total_bytes,
        )


async def iperf3(source: Node, destination: Node, *, streams: int, seconds: float) -> Measured:
    """What iperf3's receiver got, of as many streams, after a second of warming up."""
    server = await _start(_netns(destination), "iperf3", "-s", "-1", "-p", _IPERF_PORT, "-J")
    await asyncio.sleep(0.5)  # it says nothing when it listens
    client = await _start(
        _netns(source), "iperf3", "-c", destination.address, "-p", _IPERF_PORT, "-P", str(streams),
        "-t", f"{seconds:g}", "-O", "1", "-J",
    )  # fmt: skip
    try:
        async with asyncio.timeout(seconds + 30):
            report, _ = await client.communicate()
            await server.wait()
    finally:
        for process in (client, server):
            if process.returncode is None:
                process.kill()
                await process.wait()
    end = json.loads(report).get("end", {})
    if "sum_received" not in end:
        raise LabError("iperf3 failed", remedy=str(json.loads(report).get("error", "is it installed?")))
    cpu = end["cpu_utilization_percent"]
    return Measured(
        goodput_bps=end["sum_received"]["bits_per_second"],
        cpu_s_per_gb=(cpu["host_total"] + cpu["remote_total"])
        / 100 * (seconds + 1) * 1e9 / (end["sum_received"]["bits_per_second"] / 8 * (seconds + 1)),
    )  # fmt: skip


async def _start(netns: str, *command: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *inside(netns, *command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )


def _netns(node: Node) -> str:
    if node.netns is None:
        raise LabError("the transfer bench needs network namespaces", remedy="run it as root")
    return node.netns
