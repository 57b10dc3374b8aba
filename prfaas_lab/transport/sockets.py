"""Socket options of the data connections, and fixed-size reads during the handshake."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable

from prfaas_lab.transport.errors import FrameError

_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h; the socket module of Python 3.11 does not name it


def prepare(sock: socket.socket) -> None:
    """Never block, and never hold a small frame back."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def limit_unsent(sock: socket.socket, unsent_bytes: int) -> None:
    """Let no more than this wait unsent in the kernel, so that what a slow connection cannot take
    stays in the shared queue."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, unsent_bytes)


async def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Raises FrameError when the peer closes first."""
    loop = asyncio.get_running_loop()
    received = b""
    while len(received) < count:
        piece = await loop.sock_recv(sock, count - len(received))
        if not piece:
            raise FrameError("the peer closed the connection during the handshake")
        received += piece
    return received


async def write_all(sock: socket.socket, message: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, message)


class Tasks:
    """The tasks of one object: started by it, and gone when its `close` returns."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Awaitable[None]) -> None:
        """`work` handles its own errors; one that gets away is a bug, and the loop reports it."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "a transport task failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)
