"""The frame decoder: any cut of the bytes gives the same frames, and garbage gives its own error."""

from __future__ import annotations

import itertools
import random

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas_lab.transport.errors import FrameError
from prfaas_lab.transport.frames import (
    HEADER_BYTES,
    MAX_CONTROL_BYTES,
    MAX_PIECES,
    PIECE_BYTES,
    STAGING_BYTES,
    Decoder,
    Header,
    Kind,
    Piece,
    digest,
    encode,
    encode_control,
    encode_data,
)

MAX_PAYLOAD = 20_000


class Collector:
    """Takes every payload in memory of its own."""

    def __init__(self) -> None:
        self.frames: list[tuple[Header, bytes]] = []
        self.placed_bytes = 0

    def place(self, header: Header, pieces: list[Piece]) -> list[memoryview]:
        self.placed_bytes += sum(piece.length for piece in pieces)
        return [memoryview(bytearray(piece.length)) for piece in pieces]

    def data(self, header: Header, places: list[memoryview]) -> None:
        self.frames.append((header, b"".join(places)))

    def control(self, header: Header, payload: bytes) -> None:
        self.frames.append((header, payload))


def data_frame(*payloads: bytes) -> bytes:
    pieces = [Piece(1, 2, n, len(p), len(p), 0, len(p)) for n, p in enumerate(payloads)]
    return encode_data(7, pieces, payloads) + b"".join(payloads)


def body(raw: bytes) -> bytes:
    """What a frame's sink gets."""
    pieces = int.from_bytes(raw[2:4], "big")
    return raw[HEADER_BYTES + pieces * PIECE_BYTES :]


frames = st.lists(
    st.one_of(
        st.lists(st.binary(max_size=300), min_size=1, max_size=20).map(lambda some: data_frame(*some)),
        st.integers(STAGING_BYTES - 100, MAX_PAYLOAD).map(lambda size: data_frame(bytes(size))),
        st.binary(max_size=50).map(lambda payload: encode_control(Kind.ATTACH, payload)),
        st.integers(0, 2**64 - 1).map(lambda count: encode(Kind.ACK, value=count)),
    ),
    max_size=8,
)


def decode(stream: bytes, cuts: list[int]) -> list[tuple[Header, bytes]]:
    collector = Collector()
    decoder = Decoder(collector, max_payload_bytes=MAX_PAYLOAD)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        decoder.feed(stream[start:end])
    assert decoder.idle
    return collector.frames


@given(frames, st.lists(st.integers(0, 10**6), max_size=20))
def test_any_cut_of_the_stream_gives_the_same_frames(sent, cuts):
    arrived = decode(b"".join(sent), cuts)
    assert len(arrived) == len(sent)
    for (header, payload), raw in zip(arrived, sent, strict=True):
        assert body(raw) == payload
        assert header.length == len(raw) - HEADER_BYTES


@given(st.binary(min_size=HEADER_BYTES, max_size=5000))
def test_garbage_is_a_frame_error_and_asks_for_no_memory(garbage):
    collector = Collector()
    with pytest.raises(FrameError):
        Decoder(collector, max_payload_bytes=MAX_PAYLOAD).feed(garbage)
    assert collector.placed_bytes == 0


@given(frames.filter(bool), st.data())
def test_one_flipped_bit_is_an_error_or_a_payload_that_does_not_match(sent, data):
    stream = bytearray(b"".join(sent))
    position = data.draw(st.integers(0, len(stream) * 8 - 1))
    stream[position // 8] ^= 1 << position % 8
    collector = Collector()
    try:
        Decoder(collector, max_payload_bytes=MAX_PAYLOAD).feed(bytes(stream))
    except FrameError:
        return
    originals = [body(raw) for raw in sent]
    changed = [
        (header, payload)
        for (header, payload), original in zip(collector.frames, originals, strict=True)
        if payload != original
    ]
    assert len(changed) == 1
    header, payload = changed[0]
    assert header.kind != Kind.DATA or digest([payload]) != header.value


@given(frames.filter(bool), st.integers(1, 10**6))
def test_a_truncated_stream_waits_and_delivers_only_whole_frames(sent, cut):
    stream = b"".join(sent)
    collector = Collector()
    decoder = Decoder(collector, max_payload_bytes=MAX_PAYLOAD)
    decoder.feed(stream[: -(cut % len(stream)) or -1])
    assert len(collector.frames) < len(sent)
    assert [payload for _, payload in collector.frames] == [body(raw) for raw in sent][
        : len(collector.frames)
    ]


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_a_fuzzer_never_makes_it_hang_or_grow(seed):
    chance = random.Random(seed)
    collector = Collector()
    decoder = Decoder(collector, max_payload_bytes=MAX_PAYLOAD)
    fed = 0
    try:
        for _ in range(200):
            piece = bytearray(data_frame(chance.randbytes(chance.randrange(500))))
            if chance.random() < 0.02:
                piece[chance.randrange(len(piece))] ^= chance.randrange(1, 256)
            elif chance.random() < 0.01:
                del piece[chance.randrange(len(piece)) :]
            fed += len(piece)
            decoder.feed(bytes(piece))
            assert sum(map(len, decoder.buffers())) <= MAX_PAYLOAD + STAGING_BYTES
    except FrameError:
        pass
    assert collector.placed_bytes <= fed + MAX_PAYLOAD


@pytest.mark.parametrize(
    "frame",
    [
        encode(Kind.DATA, pieces=1, length=MAX_PAYLOAD + PIECE_BYTES + 1),
        encode(Kind.DATA, pieces=MAX_PIECES + 1, length=MAX_PAYLOAD),
        encode(Kind.DATA, pieces=10, length=10 * PIECE_BYTES - 1),
        encode(Kind.DATA, length=10),
        encode(Kind.DATA, pieces=1, length=2**32 - 1),
        encode(Kind.ATTACH, length=MAX_CONTROL_BYTES + 1),
    ],
    ids=["large", "many pieces", "less than its table", "no pieces", "largest", "control"],
)
def test_a_length_beyond_the_bound_is_refused_before_memory_is_asked_for(frame):
    collector = Collector()
    with pytest.raises(FrameError, match="announced"):
        Decoder(collector, max_payload_bytes=MAX_PAYLOAD).feed(frame)
    assert collector.placed_bytes == 0


def test_a_table_that_does_not_add_up_is_refused_before_memory_is_asked_for():
    collector = Collector()
    raw = data_frame(b"abc", b"def")
    table = raw[HEADER_BYTES : HEADER_BYTES + 2 * PIECE_BYTES]
    header = encode(Kind.DATA, pieces=2, length=len(table) + 7, extra=xxhash.xxh32_intdigest(table))
    with pytest.raises(FrameError, match="add up"):
        Decoder(collector, max_payload_bytes=MAX_PAYLOAD).feed(header + table)
    assert collector.placed_bytes == 0


class Into(Collector):
    """Takes every payload into the same memory."""

    def __init__(self, destination: bytearray) -> None:
        super().__init__()
        self.destination = destination

    def place(self, header: Header, pieces: list[Piece]) -> list[memoryview]:
        return [memoryview(self.destination)[: piece.length] for piece in pieces]


def test_a_payload_goes_straight_to_where_the_sink_says():
    destination = bytearray(10_000)
    decoder = Decoder(Into(destination), max_payload_bytes=MAX_PAYLOAD)
    frame = data_frame(bytes(range(100)) * 100)
    begun = len(frame) - 9_990
    decoder.feed(frame[:begun])
    target, staging = decoder.buffers()
    assert len(target) == 9_990
    target[:] = frame[begun:]
    decoder.received(9_990)
    assert destination == body(frame)
    assert len(staging) > HEADER_BYTES


def test_a_diverted_payload_leaves_the_rest_of_its_destination_alone():
    destination = bytearray(1000)
    sink = Into(destination)
    decoder = Decoder(sink, max_payload_bytes=MAX_PAYLOAD)
    frame = data_frame(b"\x07" * 1000)
    decoder.feed(frame[:-600])
    decoder.divert(memoryview(bytearray(MAX_PAYLOAD)))
    decoder.feed(frame[-600:] + data_frame(b""))
    assert destination == b"\x07" * 400 + bytes(600)
    assert len(sink.frames) == 2
