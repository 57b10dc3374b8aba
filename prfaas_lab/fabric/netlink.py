"""Just enough rtnetlink to make links, addresses, routes and queues, and to read them cheaply.

A `Netlink` speaks for the namespace its socket was made in, from any thread. That, the speed of
reading counters (tens of microseconds) and netem's tables (delay distributions, Gilbert-Elliott) are
why this is not pyroute2: its sockets are made per thread, so they would speak for the wrong namespace.
Layouts are those of linux/netlink.h and linux/rtnetlink.h.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
from collections.abc import Iterator
from types import TracebackType

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.namespaces import call_in

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
NESTED = 0x8000
REPLY_BYTES = 1 << 16
TIMEOUT_S = 10.0
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


class NetlinkError(FabricError):
    """The kernel refused a request; `code` is its errno (2, ENOENT: it knows no such thing)."""

    def __init__(self, code: int, doing: str) -> None:
        self.code = code
        super().__init__(f"{doing}: {os.strerror(code)}")


class Netlink:
    """A conversation with one namespace's kernel. Safe to share between threads."""

    def __init__(self, netns: str | None = None) -> None:
        self._socket = call_in(netns, _open) if netns else _open()
        self._lock = threading.Lock()
        self._sequence = itertools.count(1)

    def request(self, kind: int, flags: int, body: bytes, doing: str) -> list[bytes]:
        """Send one request; the bodies of the replies, once the kernel has acknowledged.

        Raises NetlinkError with what we were `doing` when the kernel refuses.
        """
        with self._lock:
            sequence = next(self._sequence)
            dumps = flags & NLM_F_DUMP == NLM_F_DUMP
            wanted = flags | NLM_F_REQUEST | (0 if dumps else NLM_F_ACK)
            head = _HEADER.pack(_HEADER.size + len(body), kind, wanted, sequence, 0)
            self._socket.send(head + body)
            return list(self._replies(sequence, doing))

    def _replies(self, sequence: int, doing: str) -> Iterator[bytes]:
        while True:
            reply = self._socket.recv(REPLY_BYTES)
            at = 0
            while at + _HEADER.size <= len(reply):
                length, kind, _, number, _ = _HEADER.unpack_from(reply, at)
                body, at = reply[at + _HEADER.size : at + length], at + (length + 3 & ~3)
                if number != sequence:
                    continue  # left over from a request that timed out
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise NetlinkError(code, doing)
                    return
                yield body

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def attribute(kind: int, value: bytes | int | str) -> bytes:
    """One attribute, padded: an int is 32 bits wide, a str ends in a zero byte."""
    if isinstance(value, int):
        value = struct.pack("=I", value)
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind | NESTED, b"".join(attributes))


def attributes(body: bytes, offset: int = 0) -> dict[int, bytes]:
    """Kind -> value of the attributes in a reply, after a fixed header of `offset` bytes."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = body[offset + 4 : offset + length]
        offset += length + 3 & ~3
    return found


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    opened.bind((0, 0))
    opened.settimeout(TIMEOUT_S)
    return opened
