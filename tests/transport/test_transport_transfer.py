"""A transfer between a sender and a receiver: whole, checked, refused or cancelled, never half."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest
from transport_pair import FAST, NEVER_S, PATIENT, UNHURRIED, Payload, begin, pair

from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.transport import Limits, upkeep
from prfaas_lab.transport.errors import (
    CorruptSegment,
    KeyMismatch,
    LayoutMismatch,
    PeerLost,
    SegmentRefused,
    TransferCancelled,
    TransferTimeout,
    UnknownTransfer,
)

SHAPES = {
    "one large": (3_000_001,),
    "pages": (65536,) * 40,
    "tiny": tuple(range(1, 300)),
    "with empty": (0, 10, 0),
    "mixed": (1, 262144, 262145, 5, 700_000),
    "nothing": (),
}


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
async def test_every_byte_arrives_once_in_its_place(sizes, monkeypatch):
    monkeypatch.setattr(upkeep, "_OVERTAKE_PATIENCE_S", NEVER_S)  # while this process is held up, too
    payload = Payload(sizes)
    async with pair() as link:
        incoming, outgoing = await begin(link, payload)
        sent, received = await outgoing.finish(), await incoming.done()
    assert payload.arrived_intact
    assert sent.bytes == received.bytes == sum(sizes)
    assert received.segments == len(sizes) == len(payload.asked) == len(set(payload.asked))
    assert sent.retried == received.retried == 0


async def test_segments_arrive_while_later_ones_do_not_exist_yet():
    payload = Payload((100_000, 100_000))
    async with pair() as link:
        incoming = link.receiver.expect("t", payload.sink)
        outgoing = await link.sender.open("t", link.peer)
        outgoing.send(SegmentKey(0, 0, 0), memoryview(payload.sources[0]))
        await outgoing.drain(0)
        assert incoming.arrived_bytes == 100_000
        outgoing.send(SegmentKey(0, 0, 1), memoryview(payload.sources[1]))
        await outgoing.finish()
    assert payload.arrived_intact


async def test_concurrent_transfers_share_the_connections():
    payloads = {f"t{n}": Payload((70_000,) * 5, seed=n) for n in range(20)}
    async with pair() as link:
        ends = [await begin(link, payload, name) for name, payload in payloads.items()]
        await asyncio.gather(*(outgoing.finish() for _, outgoing in ends), *(i.done() for i, _ in ends))
        assert len(link.receiver.inlets) <= PATIENT.connections
    assert all(payload.arrived_intact for payload in payloads.values())


async def test_connections_are_kept_for_the_next_transfer():
    async with pair() as link:
        for name in ("a", "b"):
            _, outgoing = await begin(link, Payload((10,)), name)
            await outgoing.finish()
            inlets = set(link.receiver.inlets)
        assert inlets & link.receiver.inlets


# -- refused ---------------------------------------------------------------------------------------


async def test_an_unexpected_transfer_is_refused_and_the_next_one_still_works():
    payload = Payload((500_000,) * 4)
    async with pair() as link:
        outgoing = await link.sender.open("stranger", link.peer)
        payload.send(outgoing)
        with pytest.raises(UnknownTransfer, match="not expected"):
            await outgoing.finish()
        with pytest.raises(UnknownTransfer):
            payload.send(outgoing)
        _, outgoing = await begin(link, payload)
        await outgoing.finish()
    assert payload.arrived_intact


@pytest.mark.parametrize("sizes", [(10, 20, 30, 40), (10, 21)], ids=["no such segment", "wrong size"])
async def test_a_segment_that_does_not_belong_ends_the_transfer_on_both_sides(sizes):
    here, there = Payload(sizes), Payload((10, 20, 30))
    async with pair() as link:
        incoming = link.receiver.expect("t", there.sink)
        outgoing = await link.sender.open("t", link.peer)
        here.send(outgoing)
        with pytest.raises(SegmentRefused, match="has no place"):
            await outgoing.finish()
        with pytest.raises(SegmentRefused):
            await incoming.done()


async def test_a_segment_above_the_limit_is_refused_before_memory_is_asked_for():
    payload = Payload((1000,))
    async with pair(receiving=replace(PATIENT, max_segment_bytes=999)) as link:
        _, outgoing = await begin(link, payload)
        with pytest.raises(SegmentRefused, match="limit"):
            await outgoing.finish()
    assert payload.asked == []


async def test_a_wrong_key_and_a_wrong_layout_are_different_errors():
    async with pair(key=b"x" * 32) as link:
        with pytest.raises(KeyMismatch):
            await link.sender.open("t", link.peer)
    async with pair(fingerprint=b"x" * 32) as link:
        with pytest.raises(LayoutMismatch, match="layouts differ"):
            await link.sender.open("t", link.peer)
        assert link.receiver.refusals == {"LayoutMismatch": 1}


async def test_nobody_there_is_a_lost_peer():
    async with pair() as link:
        await link.receiver.close()
        with pytest.raises(PeerLost, match=r"127\.0\.0\.1"):
            await link.sender.open("t", link.peer)


# -- cancelled -------------------------------------------------------------------------------------


async def test_cancelling_the_sender_stops_bytes_returns_memory_and_keeps_connections():
    payload, after = Payload((2_000_000,) * 10), Payload((1000,))
    sources = [bytearray(size) for size in payload.sizes]
    async with pair() as link:
        link.receiver.pause()
        incoming = link.receiver.expect("t", payload.sink)
        outgoing = await link.sender.open("t", link.peer)
        for chunk, source in enumerate(sources):
            outgoing.send(SegmentKey(0, 0, chunk), memoryview(source))
        await asyncio.sleep(0.01)
        outgoing.cancel()
        for source in sources:
            source.clear()  # raises BufferError while a view of it exists
        link.receiver.resume()
        with pytest.raises(TransferCancelled):
            await incoming.done()
        with pytest.raises(TransferCancelled):
            await outgoing.finish()
        assert incoming.arrived_bytes < 20_000_000
        _, outgoing = await begin(link, after, "after")
        await outgoing.finish()
    assert after.arrived_intact


async def test_cancelling_the_receiver_frees_the_destination_and_tells_the_sender():
    payload = Payload((2_000_000,) * 5)
    async with pair() as link:
        incoming, outgoing = await begin(link, payload)
        await payload.first_asked.wait()
        incoming.cancel()
        for place in payload.places:
            place[:] = 7
        with pytest.raises(TransferCancelled):
            await outgoing.finish()
        with pytest.raises(TransferCancelled):
            await incoming.done()
    assert all((place == 7).all() for place in payload.places)


# -- bounded ---------------------------------------------------------------------------------------


async def test_a_receiver_that_reads_nothing_holds_the_sender_at_its_window():
    payload = Payload((4_000_000,) * 4)
    receiving = replace(PATIENT, window_bytes=1_000_000)
    async with pair(receiving, receiving) as link:
        link.receiver.pause()
        _, outgoing = await begin(link, payload)
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert outgoing.taken_bytes < 1_000_000 + Limits().frame_bytes
        link.receiver.resume()
        await outgoing.finish()
    assert payload.arrived_intact


async def test_a_peer_that_takes_nothing_is_a_timeout_on_both_sides():
    payload = Payload((8_000_000,))
    limits = replace(PATIENT, progress_timeout_s=0.4, first_byte_timeout_s=0.4)
    async with pair(limits) as link:
        link.receiver.pause()
        incoming, outgoing = await begin(link, payload)
        with pytest.raises(TransferTimeout, match="no progress"):
            await outgoing.finish()
        with pytest.raises((TransferTimeout, PeerLost)):
            await incoming.done()


async def test_a_transfer_that_never_begins_is_a_timeout():
    async with pair(FAST) as link:
        with pytest.raises(TransferTimeout):
            await link.receiver.expect("t", Payload(()).sink).done()


@pytest.mark.realtime
async def test_a_slow_prefill_is_no_timeout():
    payload = Payload((1000,))
    async with pair(UNHURRIED) as link:
        incoming = link.receiver.expect("t", payload.sink)
        outgoing = await link.sender.open("t", link.peer)
        await asyncio.sleep(1.6 * UNHURRIED.progress_timeout_s)
        payload.send(outgoing)
        await outgoing.finish()
        await incoming.done()


async def test_closing_either_end_ends_its_transfers():
    async with pair() as link:
        incoming, outgoing = await begin(link, Payload((10,)))
        await link.receiver.close()
        with pytest.raises(TransferCancelled):
            await incoming.done()
        await link.sender.close()
        with pytest.raises(TransferCancelled):
            await outgoing.finish()


def _flip(every: int, at_most: float = math.inf):
    """Damage one byte in the middle of every n-th large piece, so that headers stay whole."""
    count = 0

    def through(piece: bytes) -> bytes:
        nonlocal count
        if len(piece) < 5000:
            return piece
        count += 1
        if count % every or count // every > at_most:
            return piece
        middle = len(piece) // 2
        return piece[:middle] + bytes([piece[middle] ^ 1]) + piece[middle + 1 :]

    return through


async def test_a_damaged_piece_is_fetched_again():
    payload = Payload((3_000_000,) * 3)
    async with pair(through=_flip(20, at_most=PATIENT.max_attempts - 1)) as link:
        incoming, outgoing = await begin(link, payload)
        sent, received = await outgoing.finish(), await incoming.done()
    assert payload.arrived_intact
    assert received.bytes == sum(payload.sizes)
    assert sent.retried > 0
    assert received.retried > 0


async def test_a_piece_that_is_always_damaged_ends_the_transfer():
    async with pair(through=_flip(1)) as link:
        incoming, outgoing = await begin(link, Payload((60_000,)))
        with pytest.raises(CorruptSegment):
            await outgoing.finish()
        with pytest.raises(TransferCancelled):
            await incoming.done()
