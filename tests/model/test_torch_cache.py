"""A cache taken apart into segments and put together again is the same cache."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from prfaas_lab.model.buffers import IncomingCache, chunk_spans, segment_keys
from prfaas_lab.model.layout import CacheLayout, SegmentKey
from prfaas_lab.model.torch_cache import build_cache, chunk_segments, layout_of, new_cache, state_segments
from prfaas_lab.model.torch_reference import forward

pytestmark = pytest.mark.model
LENGTHS = [1, 2, 63, 64, 65, 127, 128, 129, 200]


@torch.inference_mode()
def exported(
    model: PreTrainedModel, layout: CacheLayout, tokens: int
) -> tuple[DynamicCache, dict[SegmentKey, memoryview]]:
    cache, segments = new_cache(model), {}
    prompt = [i * 31 % 384 for i in range(tokens)]
    for span in chunk_spans(tokens, layout.chunk_tokens):
        forward(model, cache, prompt[slice(*span)])
        for layer in range(len(layout.layers)):
            segments.update(chunk_segments(cache, layout, layer, span))
    for layer in range(len(layout.layers)):
        segments.update(state_segments(cache, layout, layer, tokens))
    return cache, segments


def received(layout: CacheLayout, tokens: int, segments: dict[SegmentKey, memoryview]) -> IncomingCache:
    incoming = IncomingCache(layout, tokens)
    for key, segment in segments.items():
        incoming.destination(key, segment.nbytes)[:] = segment
        incoming.arrived(key)
    return incoming


@pytest.mark.parametrize("tokens", LENGTHS)
def test_exported_bytes_are_what_the_layout_predicts(model: PreTrainedModel, tokens: int) -> None:
    layout = layout_of(model, 64)
    _, segments = exported(model, layout, tokens)
    assert sorted(segments) == sorted(segment_keys(layout, tokens))
    for key, segment in segments.items():
        assert segment.nbytes == layout.segment_bytes(key, tokens)
    assert sum(s.nbytes for s in segments.values()) == layout.request_bytes(tokens)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_the_rebuilt_cache_goes_on_bit_for_bit(model: PreTrainedModel, tokens: int) -> None:
    layout = layout_of(model, 64)
    original, segments = exported(model, layout, tokens)
    rebuilt = build_cache(model, received(layout, tokens, segments))
    assert rebuilt.get_seq_length() == original.get_seq_length() == tokens
    with torch.inference_mode():
        for token in (5, 300, 17):
            assert torch.equal(forward(model, rebuilt, [token]), forward(model, original, [token]))


def test_exported_segments_do_not_change_as_the_model_goes_on(model: PreTrainedModel) -> None:
    cache, segments = exported(model, layout_of(model, 64), 100)
    before = {key: bytes(segment) for key, segment in segments.items()}
    with torch.inference_mode():
        forward(model, cache, [1, 2, 3])
    assert {key: bytes(segment) for key, segment in segments.items()} == before


def test_layouts_of_two_families_or_chunks_never_pass_for_one_another(model: PreTrainedModel) -> None:
    one, other = layout_of(model, 64), layout_of(model, 128)
    assert one.fingerprint == layout_of(model, 64).fingerprint != other.fingerprint
