"""Wire compression: what lossless gives back, how far the lossy one may be off, and what garbage does."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transport_pair import PATIENT, SMALL_FRAMES, Killer, pair

from prfaas_lab.errors import TransportError
from prfaas_lab.model.layout import CacheLayout, LayerLayout, Part, SegmentKey
from prfaas_lab.transport.codec import NAMES, Codec, codec_for
from prfaas_lab.transport.encoding import Encoder, Encoding
from prfaas_lab.transport.errors import (
    CompressionMismatch,
    CorruptSegment,
    SegmentRefused,
    TransferCancelled,
)

HEADS, WIDTH, CHUNK = 2, 16, 64
LAYOUT = CacheLayout(
    layers=(
        LayerLayout(kind="linear", parts=(Part(name="recurrent", kind="state", shape=(64, 64), itemsize=4),)),
        LayerLayout(
            kind="full",
            parts=(
                Part(name="keys", kind="growing", shape=(HEADS, WIDTH), itemsize=4),
                Part(name="half", kind="growing", shape=(HEADS, WIDTH), itemsize=2),
                Part(name="bytes", kind="growing", shape=(40,), itemsize=1),
            ),
        ),
    ),
    chunk_tokens=CHUNK,
)
STATE, KEYS, HALF, BYTES = (SegmentKey(0, 0, 0), *(SegmentKey(1, part, 0) for part in range(3)))
TOKEN = SegmentKey(0xFFFF, 0, 0)
"""Belongs to no tensor: a first token."""
ZSTD, INT8 = codec_for("zstd", LAYOUT), codec_for("int8", LAYOUT)

floats = st.floats(width=32, allow_nan=True, allow_infinity=True)


def vectors(elements=floats):
    shapes = st.integers(0, 12).map(lambda tokens: (tokens * HEADS, WIDTH))
    return arrays.arrays(np.dtype("<f4"), shapes, elements=elements)


def noise(tokens: int, seed: int = 0) -> np.ndarray:
    """What keys of random weights look like."""
    return np.random.default_rng(seed).standard_normal((tokens * HEADS, WIDTH)).astype("<f4")


def raw(numbers: np.ndarray) -> memoryview:
    """Its bytes (numpy has none for an empty array)."""
    return memoryview(numbers.tobytes())


def there_and_back(codec: Codec, key: SegmentKey, segment: memoryview) -> bytes:
    place = memoryview(bytearray(len(segment)))
    encoded = codec.encode(key, segment)
    if len(encoded) == len(segment):
        assert encoded is segment, "what is no shorter goes as it is"
        return bytes(segment)
    assert len(encoded) < len(segment)
    codec.decode(key, memoryview(encoded), place)
    return bytes(place)


# -- lossless --------------------------------------------------------------------------------------


@given(vectors())
def test_zstd_gives_back_every_byte_of_any_numbers(numbers):
    assert there_and_back(ZSTD, KEYS, raw(numbers)) == raw(numbers)


def test_a_plane_whose_frame_is_as_long_as_itself_is_not_taken_for_the_frame():
    numbers = np.zeros((2, 16), "<f4")
    numbers[0, 4] = numbers[1, 5] = 1  # two planes of 32 bytes, and frames of 32 bytes
    assert there_and_back(ZSTD, KEYS, raw(numbers)) == raw(numbers)


@given(st.sampled_from([STATE, KEYS, HALF, BYTES]), st.integers(0, 2000), st.integers(1, 64), st.data())
def test_zstd_gives_back_every_byte_of_any_tensor(key, count, period, data):
    itemsize = LAYOUT.layers[key.layer].parts[key.part].itemsize
    pattern = data.draw(st.binary(min_size=period, max_size=period))
    segment = memoryview((pattern * (count * itemsize // period + 1))[: count * itemsize])
    assert there_and_back(ZSTD, key, segment) == segment


def test_random_keys_hardly_shrink_without_loss():
    encoded = ZSTD.encode(KEYS, raw(noise(128)))
    assert 0.8 < len(encoded) / noise(128).nbytes < 0.88


def test_pure_noise_goes_as_it_is():
    segment = memoryview(np.random.default_rng(1).bytes(65536))
    assert ZSTD.encode(KEYS, segment) is segment


@pytest.mark.parametrize("codec", [ZSTD, INT8])
def test_a_first_token_goes_as_it_is(codec):
    segment = memoryview(bytes(8))
    assert codec.encode(TOKEN, segment) is segment


# -- int8 ------------------------------------------------------------------------------------------


@given(vectors(st.floats(-1e6, 1e6, width=32)))
def test_int8_is_off_by_half_a_step_of_its_own_vector_at_most(numbers):
    decoded = np.frombuffer(there_and_back(INT8, KEYS, raw(numbers)), "<f4").reshape(numbers.shape)
    half_step = np.abs(numbers).max(axis=1, keepdims=True, initial=0) / 127 / 2
    assert (
        np.abs(decoded - numbers) <= half_step * (1 + 1e-5) + 2e-43
    ).all()  # scales of denormals are rounded


def test_int8_is_the_same_for_a_token_whichever_tokens_it_travels_with():
    numbers = noise(CHUNK)
    whole = np.frombuffer(there_and_back(INT8, KEYS, raw(numbers)), "<f4")
    alone = np.frombuffer(there_and_back(INT8, KEYS, raw(numbers[-HEADS:])), "<f4")
    assert np.array_equal(whole[-alone.size :], alone)


def test_int8_takes_one_byte_a_number_and_a_scale_a_vector():
    numbers = noise(CHUNK)
    assert len(INT8.encode(KEYS, raw(numbers))) == len(numbers) * (WIDTH + 4)


@pytest.mark.parametrize("key", [STATE, HALF, BYTES])
def test_int8_leaves_states_and_what_are_no_float32_as_they_are(key):
    segment = memoryview(bytes(4096))
    assert INT8.encode(key, segment) is segment


@given(vectors().filter(lambda numbers: not (np.abs(numbers) < 1e38).all()))
def test_int8_leaves_infinities_and_what_is_no_number_as_they_are(numbers):
    segment = raw(numbers)
    assert INT8.encode(KEYS, segment) is segment


# -- garbage ---------------------------------------------------------------------------------------


def decode(codec: Codec, key: SegmentKey, encoded: bytes, size: int) -> None:
    """With the memory that it takes bounded by what the segment has."""
    place = memoryview(bytearray(size))
    tracemalloc.start()
    try:
        codec.decode(key, memoryview(encoded), place)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * size + 100_000


@settings(max_examples=300)
@given(
    st.sampled_from([ZSTD, INT8]),
    st.sampled_from([STATE, KEYS, HALF, TOKEN]),
    st.binary(max_size=600),
    st.integers(1, 16),
)
def test_garbage_is_a_corrupt_segment_or_numbers_but_nothing_else(codec, key, garbage, tokens):
    with contextlib.suppress(CorruptSegment):
        decode(codec, key, garbage, tokens * HEADS * WIDTH * 4)


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_encoding_is_a_corrupt_segment_or_other_numbers(data):
    codec = data.draw(st.sampled_from([ZSTD, INT8]))
    segment = raw(noise(8, seed=data.draw(st.integers(0, 5))))
    encoded = bytearray(codec.encode(KEYS, segment))
    match data.draw(st.sampled_from(["flip", "cut", "grow", "swap"])):
        case "flip":
            bit = data.draw(st.integers(0, len(encoded) * 8 - 1))
            encoded[bit // 8] ^= 1 << bit % 8
        case "cut":
            del encoded[data.draw(st.integers(0, len(encoded) - 1)) :]
        case "grow":
            encoded += data.draw(st.binary(min_size=1, max_size=50))
        case "swap":
            middle = data.draw(st.integers(1, len(encoded) - 1))
            encoded = encoded[middle:] + encoded[:middle]
    with contextlib.suppress(CorruptSegment):
        decode(codec, KEYS, bytes(encoded), len(segment))


def planes(*pieces: bytes) -> bytes:
    return struct.pack(f"!{len(pieces)}I", *map(len, pieces)) + b"".join(pieces)


SIZE = 4 * 1000
GOOD = zstandard.compress(bytes(1000))


@pytest.mark.parametrize(
    "encoded",
    [
        planes(zstandard.compress(bytes(2**26)), GOOD, GOOD, GOOD),
        planes(zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**26)), GOOD, GOOD, GOOD),
        planes(zstandard.compress(bytes(999)), GOOD, GOOD, GOOD),
        planes(GOOD + GOOD, GOOD, GOOD, GOOD),
        planes(GOOD[:-1], GOOD, GOOD, GOOD),
        planes(b"", GOOD, GOOD, GOOD),
        planes(GOOD, GOOD, GOOD),
        planes(GOOD, GOOD, GOOD, GOOD) + b"x",
        struct.pack("!4I", 2**32 - 1, 0, 0, 0),
        b"\0" * 15,
        b"",
    ],
    ids=["bomb", "bomb without a size", "short", "two frames", "truncated", "empty", "a plane too few",
         "trailing", "long", "half a table", "nothing"],
)  # fmt: skip
def test_a_lie_about_planes_is_a_corrupt_segment_and_asks_for_no_memory(encoded):
    with pytest.raises(CorruptSegment):
        decode(ZSTD, KEYS, encoded, SIZE)


@pytest.mark.parametrize("scale", [np.inf, np.nan, -1.0, 1e38])
def test_a_scale_that_no_sender_gives_is_a_corrupt_segment(scale):
    encoded = np.full(HEADS, scale, "<f4").tobytes() + bytes(HEADS * WIDTH)
    with pytest.raises(CorruptSegment):
        decode(INT8, KEYS, encoded, HEADS * WIDTH * 4)


# -- over connections ------------------------------------------------------------------------------


class Cache:
    """Segments of a layout's parts, and where they arrive."""

    def __init__(self, chunks: int) -> None:
        keys = [SegmentKey(1, 0, chunk) for chunk in range(chunks)]
        self.sent = {key: raw(noise(CHUNK, seed=key.chunk)) for key in keys}
        self.sent[STATE] = memoryview(np.random.default_rng(9).standard_normal(4096).astype("<f4")).cast("B")
        self.sent[TOKEN] = memoryview(b"01234567")
        self.places: dict[SegmentKey, bytearray] = {}

    def sink(self, key: SegmentKey, size: int) -> memoryview:
        if size != len(self.sent[key]):
            raise ValueError("another size")
        return memoryview(self.places.setdefault(key, bytearray(size)))

    def same(self, key: SegmentKey) -> bool:
        return self.places[key] == self.sent[key]

    @property
    def sizes(self) -> tuple[int, int]:
        keys = [key for key in self.sent if key not in (STATE, TOKEN)]
        return sum(len(self.sent[key]) for key in keys), len(self.sent[STATE]) + len(self.sent[TOKEN])


async def send(link, cache: Cache, *, name: str = "t", exact: bool = False, killer: Killer | None = None):
    incoming = link.receiver.expect(name, cache.sink)
    if killer is not None:
        killer.follow(incoming)
    outgoing = await link.sender.open(name, link.peer, exact=exact)
    for key, segment in cache.sent.items():
        outgoing.send(key, segment)
    return await outgoing.finish(), await incoming.done()


async def test_zstd_delivers_every_byte_and_tells_both_sizes():
    cache = Cache(20)
    async with pair(codec=ZSTD) as link:
        sent, received = await send(link, cache)
    assert all(map(cache.same, cache.sent))
    assert sent.bytes == received.bytes == sum(cache.sizes)
    assert 0.8 * sent.bytes < sent.wire_bytes == received.wire_bytes < 0.9 * sent.bytes


async def test_int8_delivers_states_and_first_token_exactly_and_attention_nearly():
    cache = Cache(20)
    growing, exact = cache.sizes
    async with pair(codec=INT8) as link:
        sent, received = await send(link, cache)
    assert cache.same(STATE)
    assert cache.same(TOKEN)
    assert not cache.same(KEYS)
    assert np.abs(np.frombuffer(cache.places[KEYS], "<f4") - noise(CHUNK).ravel()).max() < 0.03
    assert sent.bytes == received.bytes == growing + exact
    assert sent.wire_bytes == received.wire_bytes == growing // 4 + growing // WIDTH + exact


async def test_what_is_to_be_exact_is_so_under_int8_too():
    cache = Cache(3)
    async with pair(codec=INT8) as link:
        sent, _ = await send(link, cache, exact=True)
    assert all(map(cache.same, cache.sent))
    assert sent.wire_bytes == sent.bytes


async def test_without_a_codec_wire_and_payload_are_the_same():
    cache = Cache(3)
    async with pair() as link:
        sent, received = await send(link, cache)
    assert sent.bytes == sent.wire_bytes == received.bytes == received.wire_bytes


@pytest.mark.parametrize("codec", [ZSTD, INT8], ids=["zstd", "int8"])
async def test_compressed_transfers_survive_connections_that_keep_dying(codec):
    caches = {f"t{n}": Cache(300) for n in range(3)}
    async with pair(SMALL_FRAMES, codec=codec) as link:
        killer = Killer(link, every_frames=8)
        for name, cache in caches.items():
            sent, received = await send(link, cache, name=name, killer=killer)
            assert sent.wire_bytes == received.wire_bytes < sent.bytes == received.bytes
            assert cache.same(STATE)
            assert cache.same(KEYS) is not codec.lossy
        assert killer.killed > 2


async def test_a_damaged_byte_of_a_compressed_segment_is_fetched_again():
    spoiled = []

    def damage(piece: bytes) -> bytes:
        if not spoiled and len(piece) > 20_000:
            spoiled.append(True)
            return piece[:15_000] + bytes([piece[15_000] ^ 1]) + piece[15_001:]
        return piece

    cache = Cache(40)
    async with pair(replace(PATIENT, connections=1), codec=ZSTD, through=damage) as link:
        _, received = await send(link, cache)
    assert spoiled
    assert received.retried == 1
    assert all(map(cache.same, cache.sent))


async def test_a_cancelled_transfer_decodes_nothing_more():
    cache = Cache(5)
    async with pair(codec=ZSTD) as link:
        incoming = link.receiver.expect("t", cache.sink)
        outgoing = await link.sender.open("t", link.peer)
        outgoing.send(KEYS, cache.sent[KEYS])
        await outgoing.drain(0)
        outgoing.cancel()
        with pytest.raises(TransferCancelled):
            await incoming.done()
    assert list(cache.places) == [KEYS]
    assert cache.same(KEYS)


class Liar:
    """A codec whose encodings are of nothing."""

    number, lossy = NAMES.index("zstd"), False

    def encode(self, key: SegmentKey, segment: memoryview) -> bytes:
        return bytes(len(segment) // 2)


class Failing(Liar):
    """A codec that has no memory left."""

    def encode(self, key: SegmentKey, segment: memoryview) -> bytes:
        raise MemoryError


@pytest.mark.parametrize(
    ("codec", "sending", "said", "receiving"),
    [
        pytest.param(
            Failing(), TransportError, r"t could not be encoded: MemoryError", TransferCancelled, id="encoded"
        ),
        pytest.param(Liar(), CorruptSegment, None, CorruptSegment, id="decoded"),
    ],
)
async def test_a_segment_that_cannot_be_coded_ends_the_transfer_at_both_ends(codec, sending, said, receiving):
    cache = Cache(1)
    async with pair(codec=codec, their_codec=ZSTD) as link:
        incoming = link.receiver.expect("t", cache.sink)
        outgoing = await link.sender.open("t", link.peer)
        outgoing.send(KEYS, cache.sent[KEYS])
        with pytest.raises(sending, match=said):
            await outgoing.finish()
        with pytest.raises(receiving):
            await incoming.done()


async def test_a_receiver_takes_nothing_compressed_that_was_not_agreed_on():
    cache = Cache(1)
    async with pair() as link:
        link.receiver.expect("t", cache.sink)
        outgoing = await link.sender.open("t", link.peer)
        liar = Encoder(Liar())  # which had not been said in the handshake
        outgoing._encoding = Encoding(liar, outgoing._enqueue, outgoing._not_encoded)
        outgoing.send(KEYS, cache.sent[KEYS])
        with pytest.raises(SegmentRefused, match="not agreed"):
            await outgoing.finish()
        liar.close()


async def test_peers_that_compress_differently_refuse_each_other_by_name():
    async with pair(codec=INT8, their_codec=ZSTD) as link:
        with pytest.raises(CompressionMismatch, match="ours int8, the peer's zstd"):
            await link.sender.open("t", link.peer)
        assert link.receiver.refusals == {"CompressionMismatch": 1}
