"""A sender and a receiver on loopback, a proxy between them that misbehaves, and payloads."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import numpy as np

from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.transport import Incoming, KVReceiver, KVSender, Limits, Outgoing
from prfaas_lab.transport.codec import Codec
from prfaas_lab.transport.errors import PeerLost
from prfaas_lab.transport.frames import Piece
from prfaas_lab.transport.incoming import Carrier
from prfaas_lab.transport.limits import MIN_FRAME_BYTES

KEY, FINGERPRINT = b"k" * 32, b"f" * 32
PATIENCE_S = 60.0
"""For what is to come, however busy the machine is."""
NEVER_S = 2 * PATIENCE_S
PATIENT = Limits(
    connections=4, connect_timeout_s=NEVER_S, reconnect_timeout_s=NEVER_S, progress_timeout_s=NEVER_S,
    stream_timeout_s=NEVER_S, first_byte_timeout_s=NEVER_S,
)  # fmt: skip
"""Deadlines later than the end of any test: none goes on, or ends, because of one."""
FAST = Limits(
    connections=4, connect_timeout_s=2, reconnect_timeout_s=0.4, progress_timeout_s=0.4, stream_timeout_s=0.2,
    first_byte_timeout_s=0.4,
)  # fmt: skip
"""Deadlines short enough to be waited for in a test."""
SMALL_FRAMES = replace(PATIENT, connections=8, frame_bytes=MIN_FRAME_BYTES, max_frame_bytes=MIN_FRAME_BYTES)
"""Many frames of one size, whatever rate a connection turns out to have."""
UNHURRIED = replace(FAST, reconnect_timeout_s=1.0, progress_timeout_s=1.0, first_byte_timeout_s=1.0)
"""For tests that outlast a deadline which is not to end them: this process may be held up for a while."""


@dataclass
class Pair:
    sender: KVSender
    receiver: KVReceiver
    peer: tuple[str, int]


@contextlib.asynccontextmanager
async def pair(
    sending: Limits = PATIENT, receiving: Limits | None = None, *,
    through: Callable[[bytes], bytes] | None = None, key: bytes = KEY, fingerprint: bytes = FINGERPRINT,
    codec: Codec | None = None, their_codec: Codec | None = None,
) -> AsyncIterator[Pair]:  # fmt: skip
    """`key` and `fingerprint` are the sender's; `through` is what a proxy does to the sender's bytes;
    the receiver has the sender's `codec` unless it has one of its own. Open for `PATIENCE_S` at most."""
    receiver = KVReceiver(
        key=KEY, fingerprint=FINGERPRINT, settings=receiving or sending, codec=their_codec or codec,
        clock=time.monotonic,
    )  # fmt: skip
    sender = KVSender(key=key, fingerprint=fingerprint, settings=sending, codec=codec, clock=time.monotonic)
    await receiver.start("127.0.0.1", 0)
    try:
        async with asyncio.timeout(PATIENCE_S), contextlib.AsyncExitStack() as stack:
            port = receiver.port
            if through is not None:
                port = await stack.enter_async_context(proxy(port, through))
            yield Pair(sender, receiver, ("127.0.0.1", port))
    finally:
        await sender.close()
        await receiver.close()


@contextlib.asynccontextmanager
async def proxy(port: int, through: Callable[[bytes], bytes]) -> AsyncIterator[int]:
    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                writer.write(change(piece))
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.TaskGroup() as group:
            group.create_task(pump(reader, there_writer, through))
            group.create_task(pump(there_reader, writer, lambda piece: piece))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@dataclass
class Payload:
    """Segments of random bytes, and a destination of the same shape."""

    sizes: tuple[int, ...]
    seed: int = 0
    sources: list[np.ndarray] = field(init=False)
    places: list[np.ndarray] = field(init=False)
    asked: list[SegmentKey] = field(init=False, default_factory=list)
    first_asked: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        self.sources = [random.integers(0, 256, size, dtype=np.uint8) for size in self.sizes]
        self.places = [np.zeros(size, dtype=np.uint8) for size in self.sizes]

    def sink(self, key: SegmentKey, size: int) -> memoryview:
        self.asked.append(key)
        self.first_asked.set()
        if key.chunk >= len(self.sizes) or size != self.sizes[key.chunk]:
            raise ValueError(f"no place for {key} of {size} bytes")
        return memoryview(self.places[key.chunk])

    def send(self, outgoing: Outgoing) -> None:
        for chunk, source in enumerate(self.sources):
            outgoing.send(SegmentKey(0, 0, chunk), memoryview(source))

    @property
    def arrived_intact(self) -> bool:
        return all(np.array_equal(s, p) for s, p in zip(self.sources, self.places, strict=True))


async def begin(link: Pair, payload: Payload, transfer_id: str = "t") -> tuple[Incoming, Outgoing]:
    incoming = link.receiver.expect(transfer_id, payload.sink)
    outgoing = await link.sender.open(transfer_id, link.peer)
    payload.send(outgoing)
    return incoming, outgoing


async def all_connected(link: Pair, connections: int) -> None:
    """The first transfer needs one connection only; the others come up behind it."""
    await until(lambda: len(link.receiver.inlets) >= connections)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what nothing announces."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class Killer:
    """Cuts a receiving connection in the middle of every so many-th frame that any of them reads: so that a
    slow machine gets as far between two cuts as a fast one."""

    def __init__(self, link: Pair, every_frames: int) -> None:
        self._link, self._every_frames = link, every_frames
        self._frames = self.killed = 0

    def follow(self, incoming: Incoming) -> None:
        """Heed the frames of this transfer too."""
        place = incoming.place

        def placed(carrier: Carrier, pieces: list[Piece]) -> list[memoryview]:
            self._frames += 1
            if self._frames % self._every_frames == 0:
                asyncio.get_running_loop().call_soon(self._kill, carrier)
            return place(carrier, pieces)

        incoming.place = placed  # type: ignore[method-assign]

    def _kill(self, inlet: Carrier) -> None:
        if inlet in self._link.receiver.inlets:
            self._link.receiver.lost(inlet, PeerLost("killed by the test"))
            self.killed += 1
