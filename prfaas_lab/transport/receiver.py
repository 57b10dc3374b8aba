"""The decode engine's end: accepts connections, and knows which transfers are expected."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import OrderedDict
from collections.abc import Callable

from prfaas_lab.errors import TransportError
from prfaas_lab.transport.codec import Codec, number_of
from prfaas_lab.transport.errors import PeerLost, TransferCancelled, TransferTimeout
from prfaas_lab.transport.frames import Refusal
from prfaas_lab.transport.handshake import HELLO_BYTES, PROOF_BYTES, Bounds, ReceiverHandshake
from prfaas_lab.transport.incoming import Incoming, Sink
from prfaas_lab.transport.inlet import Inlet
from prfaas_lab.transport.limits import Limits
from prfaas_lab.transport.sockets import Tasks, prepare, read_exactly, write_all

_REMEMBERED = 4096
"""Transfers whose end is still known when a connection that missed it asks again."""


class KVReceiver:
    """Receives KVCache from any number of senders of the same run and layout.

    `key` is the run's secret, `fingerprint` the 32 bytes of the cache layout, `codec` what both ends
    compress with, `clock` what the times in `Received` are read from. `refusals` counts handshakes that
    failed, by error name.
    """

    def __init__(
        self, *, key: bytes, fingerprint: bytes, settings: Limits | None = None,
        codec: Codec | None = None, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._key, self._fingerprint, self._codec, self._clock = key, fingerprint, codec, clock
        self._settings = settings or Limits()
        self._scratch = memoryview(bytearray(self._settings.max_frame_bytes))
        self._expected: dict[str, Incoming] = {}
        self._past: OrderedDict[str, Refusal | None] = OrderedDict()
        self._greeting = 0
        self._tasks = Tasks()
        self._paused = False
        self._listener: socket.socket | None = None
        self.inlets: set[Inlet] = set()
        self.refusals: dict[str, int] = {}

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes any free one (see `port`). Raises OSError when it is taken."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener = socket.create_server((host, port), family=_family(host), backlog=128)
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)
        self._tasks.start(self._watch())

    @property
    def port(self) -> int:
        assert self._listener is not None, "not started"
        return int(self._listener.getsockname()[1])

    async def close(self) -> None:
        """Transfers that are still expected fail with TransferCancelled."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        await self._tasks.close()
        for incoming in list(self._expected.values()):
            incoming.end(TransferCancelled("the receiver was closed"), Refusal.CANCELLED)
        for inlet in self.inlets:
            inlet.close()
        self.inlets.clear()

    def expect(self, transfer_id: str, sink: Sink) -> Incoming:
        """Await a transfer of this id; call before its sender opens it.

        `sink(key, nbytes)` is called once for every segment and gives its writable destination,
        contiguous and of exactly that size; ValueError refuses the segment, and ends the transfer.
        """
        if transfer_id in self._expected:
            raise ValueError(f"transfer {transfer_id} is expected already")
        self._past.pop(transfer_id, None)
        incoming = Incoming(
            transfer_id, sink, self._settings, self._clock, self._loop.time(), self._forget, self._codec
        )
        self._expected[transfer_id] = incoming
        return incoming

    def pause(self) -> None:
        """Take no more bytes from anybody: at most each sender's window is then on its way."""
        self._paused = True
        for inlet in self.inlets:
            inlet.pause()

    def resume(self) -> None:
        self._paused = False
        for inlet in self.inlets:
            inlet.resume()

    # -- for the connections -------------------------------------------------------------------

    def find(self, transfer_id: str) -> Incoming | Refusal | None:
        return self._expected.get(transfer_id) or self._past.get(transfer_id, Refusal.UNKNOWN)

    def lost(self, inlet: Inlet, error: TransportError) -> None:
        inlet.close()
        self.inlets.discard(inlet)

    # ------------------------------------------------------------------------------------------

    def _forget(self, incoming: Incoming, refusal: Refusal | None) -> None:
        self._expected.pop(incoming.transfer_id, None)
        self._past[incoming.transfer_id] = refusal
        if len(self._past) > _REMEMBERED:
            self._past.popitem(last=False)

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sock, _ = self._listener.accept()
            if self._greeting >= self._settings.max_connections:
                sock.close()
            else:
                self._greeting += 1
                self._tasks.start(self._greet(sock))

    async def _greet(self, sock: socket.socket) -> None:
        try:
            prepare(sock)
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await self._shake_hands(sock)
        except (OSError, TransportError) as error:
            name = type(error).__name__
            self.refusals[name] = self.refusals.get(name, 0) + 1
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            inlet = Inlet(sock, self, self._settings, self._scratch)
            self.inlets.add(inlet)
            if self._paused:
                inlet.pause()
        finally:
            self._greeting -= 1

    async def _shake_hands(self, sock: socket.socket) -> None:
        settings = self._settings
        bounds = Bounds(settings.window_bytes, settings.max_frame_bytes)
        handshake = ReceiverHandshake(self._key, self._fingerprint, bounds, number_of(self._codec))
        await write_all(sock, handshake.greeted(await read_exactly(sock, HELLO_BYTES)))
        proof = await read_exactly(sock, PROOF_BYTES)
        answer, error = handshake.proved(proof, full=len(self.inlets) >= settings.max_connections)
        await write_all(sock, answer)
        if error is not None:
            raise error

    async def _watch(self) -> None:
        settings = self._settings
        shortest_s = min(
            settings.progress_timeout_s, settings.reconnect_timeout_s, settings.first_byte_timeout_s
        )
        while True:
            await asyncio.sleep(min(shortest_s / 4, 1.0))
            now = self._loop.time()
            for incoming in list(self._expected.values()):
                self._end_if_overdue(incoming, now - incoming.progress_at)

    def _end_if_overdue(self, incoming: Incoming, idle_s: float) -> None:
        settings, name = self._settings, incoming.transfer_id
        if incoming.begun and not incoming.carriers and idle_s > settings.reconnect_timeout_s:
            incoming.end(PeerLost(f"the sender of {name} is gone"), Refusal.TIMEOUT)
        elif idle_s > (settings.progress_timeout_s if incoming.begun else settings.first_byte_timeout_s):
            incoming.end(TransferTimeout(f"{name} made no progress for {idle_s:.1f} s"), Refusal.TIMEOUT)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
