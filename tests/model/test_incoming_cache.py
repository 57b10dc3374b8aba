"""A request's buffers are complete exactly when every segment has arrived, and hold just its bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.model.buffers import IncomingCache, SegmentRefused, chunk_spans, segment_keys
from prfaas_lab.model.layout import CacheLayout, LayerLayout, Part, SegmentKey

KEYS = Part(name="keys", kind="growing", shape=(2, 3), itemsize=4)
VALUES = Part(name="values", kind="growing", shape=(1,), itemsize=4)
STATE = Part(name="recurrent-0", kind="state", shape=(5,), itemsize=4)
LINEAR = LayerLayout(kind="linear", parts=(STATE,))
FULL = LayerLayout(kind="full", parts=(KEYS, VALUES))

layouts = st.builds(
    CacheLayout,
    layers=st.lists(st.sampled_from([LINEAR, FULL]), min_size=1, max_size=4).map(tuple),
    chunk_tokens=st.sampled_from([64, 128]),
)


def hybrid() -> CacheLayout:
    return CacheLayout(layers=(LINEAR, FULL), chunk_tokens=64)


@given(layout=layouts, tokens=st.integers(1, 400), data=st.data())
def test_buffers_are_complete_exactly_when_every_segment_arrived(
    layout: CacheLayout, tokens: int, data: st.DataObject
) -> None:
    incoming = IncomingCache(layout, tokens)
    keys = data.draw(st.permutations(list(segment_keys(layout, tokens))))
    for position, key in enumerate(keys):
        assert not incoming.complete
        assert incoming.missing() == sorted(keys[position:])
        incoming.arrived(key)
    assert incoming.complete
    assert incoming.missing_bytes == 0


@given(layout=layouts, tokens=st.integers(1, 400))
def test_segments_add_up_to_what_the_layout_predicts(layout: CacheLayout, tokens: int) -> None:
    sizes = [layout.segment_bytes(key, tokens) for key in segment_keys(layout, tokens)]
    assert sum(sizes) == layout.request_bytes(tokens)
    assert min(sizes) > 0


@given(layout=layouts, tokens=st.integers(1, 400), data=st.data())
def test_every_byte_has_exactly_one_segment(layout: CacheLayout, tokens: int, data: st.DataObject) -> None:
    incoming = IncomingCache(layout, tokens)
    for key in data.draw(st.permutations(list(segment_keys(layout, tokens)))):
        place = incoming.destination(key, layout.segment_bytes(key, tokens))
        assert not any(place), "two segments share a byte"
        place[:] = b"\1" * len(place)
    for index, layer in enumerate(layout.layers):
        for part in range(len(layer.parts)):
            assert all(incoming.part(index, part)), "a byte belongs to no segment"


def test_a_chunk_lies_behind_the_chunks_before_it() -> None:
    incoming = IncomingCache(hybrid(), 100)
    incoming.destination(SegmentKey(1, 1, 1), 36 * 4)[:] = b"\7" * 144
    assert incoming.part(1, 1) == bytes(64 * 4) + b"\7" * 144


@pytest.mark.parametrize("nbytes", [0, 1, 36 * 4 - 1, 36 * 4 + 1, 64 * 4, -4, 2**40])
def test_a_segment_of_another_size_is_refused(nbytes: int) -> None:
    with pytest.raises(SegmentRefused, match="its layout says 144"):
        IncomingCache(hybrid(), 100).destination(SegmentKey(1, 1, 1), nbytes)


@pytest.mark.parametrize(
    "key",
    [(2, 0, 0), (1, 2, 0), (1, 0, 2), (0, 0, 0), (-1, 0, 0), (1, -1, 0), (1, 0, -1), (0, 1, 1)],
    ids=lambda key: "layer{}-part{}-chunk{}".format(*key),
)
def test_a_segment_the_prompt_does_not_have_is_refused(key: tuple[int, int, int]) -> None:
    incoming = IncomingCache(hybrid(), 100)
    with pytest.raises(SegmentRefused, match="is no segment"):
        incoming.destination(SegmentKey(*key), 144)
    with pytest.raises(SegmentRefused, match="is no segment"):
        incoming.arrived(SegmentKey(*key))


def test_a_segment_that_arrived_is_not_taken_again() -> None:
    incoming = IncomingCache(hybrid(), 100)
    key = SegmentKey(1, 1, 1)
    incoming.arrived(key)
    with pytest.raises(SegmentRefused, match="came twice"):
        incoming.destination(key, 144)
    with pytest.raises(SegmentRefused, match="came twice"):
        incoming.arrived(key)


def test_a_segment_broken_off_can_be_received_again() -> None:
    incoming = IncomingCache(hybrid(), 100)
    for _ in range(2):
        assert len(incoming.destination(SegmentKey(1, 1, 1), 144)) == 144


@given(tokens=st.integers(1, 2000), chunk=st.sampled_from([64, 128, 256]), cached=st.integers(0, 5))
def test_chunks_cover_the_uncached_tokens_once_and_start_on_boundaries(
    tokens: int, chunk: int, cached: int
) -> None:
    start = min(cached, (tokens - 1) // chunk) * chunk
    spans = list(chunk_spans(tokens, chunk, start=start))
    assert [t for first, end in spans for t in range(first, end)] == list(range(start, tokens))
    assert all(first % chunk == 0 and end - first <= chunk for first, end in spans)


@given(layout=layouts, tokens=st.integers(1, 400), data=st.data())
def test_a_transfer_that_ends_short_leaves_a_hole(
    layout: CacheLayout, tokens: int, data: st.DataObject
) -> None:
    incoming = IncomingCache(layout, tokens)
    keys = list(segment_keys(layout, tokens))
    placed = data.draw(st.sets(st.sampled_from(keys)))
    for key in placed:
        incoming.destination(key, layout.segment_bytes(key, tokens))
    incoming.all_arrived()
    assert incoming.missing() == sorted(set(keys) - placed)
    assert incoming.complete == (placed == set(keys))


def test_a_sink_refuses_in_the_way_the_transport_understands() -> None:
    with pytest.raises(ValueError, match="is no segment"):
        IncomingCache(hybrid(), 100).destination(SegmentKey(9, 9, 9), 1)
