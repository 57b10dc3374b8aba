"""Connections die, peers vanish, policies compete: every byte arrives once, or the error says why."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest
from transport_pair import (
    FAST,
    PATIENT,
    SMALL_FRAMES,
    UNHURRIED,
    Killer,
    Payload,
    all_connected,
    begin,
    pair,
    until,
)

from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.transport.errors import PeerLost, TransferCancelled


async def test_transfers_survive_connections_that_keep_dying():
    payloads = {f"t{n}": Payload((3_000_000, 65536, 65536, 10), seed=n) for n in range(12)}
    async with pair(SMALL_FRAMES) as link:
        killer, retried = Killer(link, every_frames=8), 0
        for name, payload in payloads.items():
            incoming, outgoing = await begin(link, payload, name)
            killer.follow(incoming)
            sent, received = await outgoing.finish(), await incoming.done()
            assert sent.bytes == received.bytes == sum(payload.sizes)
            assert payload.arrived_intact
            retried += sent.retried
        assert killer.killed > 3
    assert retried > 0


@pytest.mark.realtime
async def test_a_transfer_that_waits_for_its_prefill_outlives_the_connection_it_was_told_on():
    payload = Payload((1000,))
    async with pair(UNHURRIED) as link:
        incoming = link.receiver.expect("t", payload.sink)
        outgoing = await link.sender.open("t", link.peer)
        await all_connected(link, UNHURRIED.connections)
        (inlet,) = (inlet for inlet in link.receiver.inlets if inlet in incoming.carriers)
        link.receiver.lost(inlet, PeerLost("killed by the test"))
        await asyncio.sleep(1.6 * UNHURRIED.reconnect_timeout_s)
        payload.send(outgoing)
        await outgoing.finish()
        await incoming.done()
        assert payload.arrived_intact


async def test_a_peer_that_dies_for_good_is_lost_on_the_senders_side():
    async with pair(replace(PATIENT, reconnect_timeout_s=FAST.reconnect_timeout_s)) as link:
        link.receiver.pause()
        _, outgoing = await begin(link, Payload((10_000_000,)))
        await asyncio.sleep(0.01)
        link.receiver._expected.clear()  # a process that dies says nothing to anybody
        await link.receiver.close()
        with pytest.raises(PeerLost):
            await outgoing.finish()


async def test_a_sender_that_dies_for_good_is_lost_on_the_receivers_side():
    async with pair(replace(PATIENT, reconnect_timeout_s=FAST.reconnect_timeout_s)) as link:
        incoming, outgoing = await begin(link, Payload((1000,)))
        await outgoing.drain(0)
        for route in link.sender.routes.values():
            route.transfers.clear()  # a process that dies says nothing to anybody
        await link.sender.close()
        with pytest.raises(PeerLost):
            await incoming.done()


@pytest.mark.parametrize(("stream_timeout_s", "dropped"), [(0.2, True), (PATIENT.stream_timeout_s, False)])
async def test_a_connection_that_hangs_is_overtaken_and_in_time_dropped(stream_timeout_s, dropped):
    payload = Payload((8_000_000,))
    async with pair(replace(PATIENT, stream_timeout_s=stream_timeout_s)) as link:
        _, outgoing = await begin(link, Payload((1,)), "first")
        await outgoing.finish()
        await all_connected(link, PATIENT.connections)
        hanging = next(iter(link.receiver.inlets))
        hanging.pause()
        incoming, outgoing = await begin(link, payload)
        sent, received = await outgoing.finish(), await incoming.done()
        assert payload.arrived_intact
        assert received.bytes == sent.bytes == 8_000_000
        if dropped:
            (route,) = link.sender.routes.values()
            before = set(route.streams)
            await until(lambda: before != set(route.streams))


async def test_of_two_copies_of_a_frame_the_first_counts_and_the_slow_one_writes_nothing():
    payload = Payload((1_000_000,))
    async with pair() as link:
        _, outgoing = await begin(link, Payload((1,)), "first")
        await outgoing.finish()
        await all_connected(link, PATIENT.connections)
        slow = list(link.receiver.inlets)[:2]
        for inlet in slow:
            inlet.pause()
        incoming, outgoing = await begin(link, payload)
        await outgoing.finish()
        received = await incoming.done()
        payload.places[0][:] = 7
        for inlet in slow:
            inlet.resume()
        _, outgoing = await begin(link, Payload((4_000_000,)), "after")
        await outgoing.finish()
    assert received.bytes == 1_000_000
    assert (payload.places[0] == 7).all()


@pytest.mark.parametrize("policy", ["fifo", "shortest", "weighted"])
async def test_the_policy_decides_who_is_done_first(policy):
    sizes = {"long": 6_000_000, "short": 200_000}
    limits = replace(PATIENT, policy=policy, window_bytes=500_000)
    order: list[str] = []
    async with pair(limits) as link:
        link.receiver.pause()
        ends = {name: await begin(link, Payload((size,)), name) for name, size in sizes.items()}
        link.receiver.resume()

        async def finish(name: str) -> None:
            await ends[name][1].finish()
            order.append(name)

        await asyncio.gather(*map(finish, sizes))
    assert order == (["long", "short"] if policy == "fifo" else ["short", "long"])


async def test_garbage_after_the_handshake_costs_only_its_connection():
    payload = Payload((500_000,) * 3)
    async with pair() as link:
        _, outgoing = await begin(link, Payload((1,)), "first")
        await outgoing.finish()
        (route,) = link.sender.routes.values()
        route.streams[0].sock.send(b"\xff" * 100)
        _, outgoing = await begin(link, payload)
        await outgoing.finish()
    assert payload.arrived_intact


async def test_strangers_at_the_port_are_turned_away_within_the_deadline():
    async with pair(replace(PATIENT, connect_timeout_s=0.2)) as link:
        reader, writer = await asyncio.open_connection(*link.peer)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        reader, silent = await asyncio.open_connection(*link.peer)
        assert await reader.read() == b""
        for stream in (writer, silent):
            stream.close()
        assert sum(link.receiver.refusals.values()) == 2
        assert not link.receiver.inlets


async def test_an_engine_that_fails_half_way_through_leaves_an_error_not_half_a_cache():
    async with pair() as link:
        payload = Payload((1000, 1000))
        incoming = link.receiver.expect("t", payload.sink)
        outgoing = await link.sender.open("t", link.peer)
        outgoing.send(SegmentKey(0, 0, 0), memoryview(payload.sources[0]))
        await outgoing.drain(0)
        outgoing.cancel()
        with pytest.raises(TransferCancelled):
            await incoming.done()


async def test_a_transfer_that_was_withdrawn_and_comes_again_leaves_nothing_behind():
    payload = Payload((1000, 1000))
    async with pair(replace(PATIENT, connections=1)) as link:
        incoming = link.receiver.expect("t", payload.sink)
        first = await link.sender.open("t", link.peer)
        await until(lambda: incoming.carriers)
        first.withdraw()
        again = await link.sender.open("t", link.peer)
        payload.send(again)
        await again.finish()
        await incoming.done()
        (inlet,) = link.receiver.inlets
        assert not inlet._transfers
