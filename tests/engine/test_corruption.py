"""A corruption damages just what it says, and keeps every size."""

from __future__ import annotations

import pytest

from prfaas_lab.engine.corruption import Corruption, corruption_filter
from prfaas_lab.model.buffers import segment_keys
from prfaas_lab.model.layout import CacheLayout, LayerLayout, Part, SegmentKey

STATES = tuple(Part(name=f"{n}-0", kind="state", shape=(3,), itemsize=4) for n in ("conv", "recurrent"))
KEYS_VALUES = tuple(Part(name=n, kind="growing", shape=(2,), itemsize=4) for n in ("keys", "values"))
LAYOUT = CacheLayout(
    layers=(
        LayerLayout(kind="linear", parts=STATES),
        LayerLayout(kind="full", parts=KEYS_VALUES),
        LayerLayout(kind="linear", parts=STATES),
    ),
    chunk_tokens=64,
)


@pytest.mark.parametrize(
    ("kind", "damaged"),
    [
        ("conv-state", {SegmentKey(0, 0, 1)}),
        ("recurrent-state", {SegmentKey(0, 1, 1)}),
        ("kv-block", {SegmentKey(1, 0, 0), SegmentKey(1, 1, 0)}),
    ],
)
def test_a_corruption_zeroes_what_it_is_named_after(kind: Corruption, damaged: set[SegmentKey]) -> None:
    outgoing = corruption_filter(kind, LAYOUT)
    for key in segment_keys(LAYOUT, 100):
        segment = memoryview(b"\1" * LAYOUT.segment_bytes(key, 100))
        result = outgoing(key, segment)
        assert result.nbytes == segment.nbytes
        assert (not any(result)) == (key in damaged)
        assert all(segment), "the original is left alone"


def test_a_model_without_such_a_state_cannot_lose_it() -> None:
    full = CacheLayout(layers=(LayerLayout(kind="full", parts=KEYS_VALUES),), chunk_tokens=64)
    with pytest.raises(LookupError, match="no recurrent state"):
        corruption_filter("recurrent-state", full)
