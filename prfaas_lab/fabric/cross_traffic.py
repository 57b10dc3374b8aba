"""Traffic that competes for a link: real UDP at a rate, or greedy TCP, from gateway to gateway."""

from __future__ import annotations

import socket
from typing import Literal, Protocol

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.packet_process import PacketProcess
from prfaas_lab.fabric.probes import Way

LISTEN_BACKLOG = 1
UNREAD_BYTES = 4096
"""Datagrams are only meant to fill the link: their receiver never reads, and its buffer is small."""


class Network(Protocol):
    """What is needed of a `Fabric`."""

    shaper: str

    def way(self, link: str, source: str) -> Way:
        """The addresses of a link's two ends."""

    def far_end(self, link: str, source: str) -> str:
        """The datacenter at the other end."""

    def socket(self, node: str, kind: int) -> socket.socket:
        """A socket inside a node's namespace; a gateway has the name of its datacenter."""


class CrossTraffic:
    """All competing flows, in one process of their own. One flow per direction and kind."""

    def __init__(self, network: Network) -> None:
        """Starts the process, so that a flow later starts at once. Raises FabricError under the relay,
        which carries nothing but the lab's own streams."""
        if network.shaper == "relay":
            raise FabricError(
                "cross traffic needs packets, which the relay shaper does not carry",
                remedy="drop cross_traffic:, or run as root",
            )
        self._network = network
        self._process = PacketProcess("cross_traffic", 0)
        self._flows: dict[tuple[str, str, float | str], int] = {}
        self._started = 0

    @property
    def pid(self) -> int:
        """The process that sends (for CPU accounting and ownership)."""
        return self._process.pid

    def start(self, link: str, source: str, traffic: float | Literal["tcp"]) -> float:
        """Send from `source` over a link, at so many bit/s on the wire (UDP), or as much as TCP takes.

        Returns the monotonic time at which the flow had begun.
        """
        key = (link, source, traffic)
        if key in self._flows:
            raise FabricError("this cross traffic runs already", where=f"link {link} from {source}")
        way, far = self._network.way(link, source), self._network.far_end(link, source)
        kind = socket.SOCK_STREAM if traffic == "tcp" else socket.SOCK_DGRAM
        number = self._started
        with self._network.socket(far, kind) as receiver, self._network.socket(source, kind) as sender:
            receiver.bind((way.dial[0], 0))
            if traffic == "tcp":
                receiver.listen(LISTEN_BACKLOG)
            else:
                receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNREAD_BYTES)
            sender.bind((way.bind, 0))
            request = {"do": "start", "flow": number, "traffic": traffic, "to": receiver.getsockname()}
            at = self._process.ask(request, (sender.fileno(), receiver.fileno()))
        self._flows[key], self._started = number, number + 1
        return at

    def stop(self, link: str, source: str, traffic: float | Literal["tcp"]) -> float:
        """End a flow at once; what it has queued on the link still passes."""
        number = self._flows.pop((link, source, traffic), None)
        if number is None:
            raise FabricError("no such cross traffic runs", where=f"link {link} from {source}")
        return self._process.ask({"do": "stop", "flow": number})

    def close(self) -> None:
        """End all flows."""
        self._process.close()
