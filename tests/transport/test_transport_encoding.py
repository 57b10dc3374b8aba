"""Encoding beside the loop: in order, a batch of a transfer at a time, and of no effect once it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator

import pytest
from transport_pair import PATIENCE_S, UNHURRIED, pair, until

from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.transport.codec import NAMES
from prfaas_lab.transport.encoding import Encoder
from prfaas_lab.transport.errors import TransferCancelled
from prfaas_lab.transport.frames import Kind
from prfaas_lab.transport.outgoing import Outgoing


class Halves:
    """A codec that keeps half of each segment, when it may; it waits in its thread as one that is busy."""

    number, lossy = NAMES.index("zstd"), False

    def __init__(self) -> None:
        self.may = threading.Semaphore(0)
        self.begun: list[SegmentKey] = []
        self.threads: set[int] = set()

    def encode(self, key: SegmentKey, segment: memoryview) -> memoryview:
        self.begun.append(key)
        self.threads.add(threading.get_ident())
        assert self.may.acquire(timeout=PATIENCE_S), "nobody let it go on"
        return segment[: len(segment) // 2]

    def decode(self, key: SegmentKey, encoded: memoryview, place: memoryview) -> None:
        place[:] = bytes(encoded) * 2


class Site:
    """A sender without connections: what its transfers have to send is taken by hand."""

    def __init__(self) -> None:
        self.codec = Halves()
        self.encoder = Encoder(self.codec)
        self.woken, self.changed = 0, asyncio.Event()

    def ready(self, outgoing: Outgoing) -> None:
        self.woken += 1
        self.changed.set()

    def withdraw(self, outgoing: Outgoing, *, tell_peer: bool) -> None:
        pass

    def transfer(self, number: int = 1, *, expected_bytes: int | None = None) -> Outgoing:
        return Outgoing(
            f"t{number}", number, self, time.monotonic,
            weight=1.0, expected_bytes=expected_bytes, served=0.0, encoder=self.encoder,
        )  # fmt: skip

    async def encoded(self, outgoing: Outgoing, wire_bytes: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while outgoing.enqueued_bytes < wire_bytes:
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def site() -> AsyncIterator[Site]:
    opened = Site()
    try:
        yield opened
    finally:
        opened.codec.may.release(1000)
        opened.encoder.close()


def key(chunk: int) -> SegmentKey:
    return SegmentKey(0, 0, chunk)


def segment(chunk: int, size: int = 100) -> memoryview:
    return memoryview(bytes([chunk]) * size)


def taken(outgoing: Outgoing) -> list[int]:
    """The first byte of each segment that is ready to go, in order."""
    found = []
    while (frame := outgoing.next_frame(1)) is not None and frame.kind is Kind.DATA:
        found.append(frame.payloads[0][0])
        outgoing._waiting.popleft()  # the rest of it
    return found


async def test_the_loop_goes_on_while_a_segment_is_encoded() -> None:
    async with site() as here:
        outgoing = here.transfer()
        outgoing.send(key(1), segment(1))
        await until(lambda: here.codec.begun)  # would hang, were it encoded here
        assert (here.codec.begun, outgoing.has_work, here.woken) == ([key(1)], False, 0)
        here.codec.may.release()
        await here.encoded(outgoing, 50)
        assert (outgoing.has_work, here.woken, outgoing.payload_bytes) == (True, 1, 100)
    assert threading.get_ident() not in here.codec.threads


async def test_segments_go_in_the_order_in_which_they_were_handed_over() -> None:
    """Whichever come while others are encoded."""
    async with site() as here:
        outgoing = here.transfer()
        for chunk in range(9):
            outgoing.send(key(chunk), segment(chunk))
            if chunk % 3 == 0:
                here.codec.may.release()
                await asyncio.sleep(0.002)
        here.codec.may.release(9)
        await here.encoded(outgoing, 9 * 50)
        assert here.codec.begun == [key(chunk) for chunk in range(9)]
        assert taken(outgoing) == list(range(9))


async def test_transfers_take_turns() -> None:
    """A long transfer that was there first holds the next up for one batch."""
    async with site() as here:
        long, short = here.transfer(1), here.transfer(2)
        for chunk in range(6):
            long.send(key(chunk), segment(chunk, 2**20))
        short.send(key(9), segment(9))
        here.codec.may.release(2)
        await here.encoded(short, 50)
        assert (long.enqueued_bytes, here.codec.begun[:2]) == (2**19, [key(0), key(9)])


async def test_the_end_of_a_transfer_waits_for_what_is_being_encoded() -> None:
    async with site() as here:
        outgoing = here.transfer()
        outgoing.send(key(1), segment(1))
        finishing = asyncio.ensure_future(outgoing.finish())
        await asyncio.sleep(0.01)
        assert (outgoing.has_work, outgoing.next_frame(100), here.woken) == (False, None, 0)
        here.codec.may.release()
        await here.encoded(outgoing, 50)
        kinds = [outgoing.next_frame(100), outgoing.next_frame(100), outgoing.next_frame(100)]
        assert [frame and frame.kind for frame in kinds] == [Kind.DATA, Kind.FINISH, None]
        finishing.cancel()


async def test_what_is_encoded_when_its_transfer_ends_goes_nowhere() -> None:
    async with site() as here:
        outgoing, other = here.transfer(1), here.transfer(2)
        for chunk in range(5):
            outgoing.send(key(chunk), segment(chunk, 2**20))
        await until(lambda: here.codec.begun)
        outgoing.cancel()
        with pytest.raises(TransferCancelled):
            outgoing.send(key(5), segment(5))
        other.send(key(9), segment(9))
        here.codec.may.release(10)
        await here.encoded(other, 50)
        assert (outgoing.enqueued_bytes, outgoing.has_work, here.codec.begun) == (0, False, [key(0), key(9)])


async def test_draining_waits_for_what_is_not_encoded_yet() -> None:
    async with site() as here:
        outgoing = here.transfer(expected_bytes=300)
        assert outgoing.remaining_bytes == 300
        outgoing.send(key(1), segment(1))
        assert outgoing.remaining_bytes == 300
        draining = asyncio.ensure_future(outgoing.drain(60))
        await asyncio.sleep(0.01)
        assert not draining.done()
        here.codec.may.release()
        async with asyncio.timeout(PATIENCE_S):
            await draining  # 50 bytes are under way
        assert outgoing.remaining_bytes == 250


async def test_a_sender_that_is_closed_while_it_encodes_ends_its_transfers() -> None:
    codec = Halves()
    async with pair(codec=codec) as link:
        link.receiver.expect("t", lambda _, size: memoryview(bytearray(size)))
        outgoing = await link.sender.open("t", link.peer)
        for chunk in range(5):
            outgoing.send(key(chunk), segment(chunk, 2**20))
        finishing = asyncio.ensure_future(outgoing.finish())
        await until(lambda: codec.begun)
        async with asyncio.timeout(PATIENCE_S / 2):
            await link.sender.close()
        with pytest.raises(TransferCancelled):
            await finishing
        codec.may.release(10)


@pytest.mark.realtime
async def test_a_slow_encoder_does_not_end_a_transfer_that_waits_for_it() -> None:
    """Longer than either end waits for progress of the other."""
    codec = Halves()
    places: dict[SegmentKey, bytearray] = {}
    async with pair(UNHURRIED, codec=codec) as link:
        incoming = link.receiver.expect(
            "t", lambda at, size: memoryview(places.setdefault(at, bytearray(size)))
        )
        outgoing = await link.sender.open("t", link.peer)
        outgoing.send(key(1), segment(1))
        finishing = asyncio.ensure_future(outgoing.finish())
        await asyncio.sleep(1.6 * UNHURRIED.progress_timeout_s)
        codec.may.release()
        await finishing
        await incoming.done()
    assert places == {key(1): bytes([1]) * 100}
