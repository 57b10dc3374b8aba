"""Block names stand for prefixes, and geometry comes from the model's layout."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.kvcache.blocks import CacheError, Geometry, hash_prompt
from prfaas_lab.model.layout import CacheLayout, LayerLayout, Part

tokens_lists = st.lists(st.integers(0, 3), max_size=24)

KV = Part(name="k", kind="growing", shape=(2, 8), itemsize=4)
STATE = Part(name="s", kind="state", shape=(4, 4), itemsize=4)
LAYOUT = CacheLayout(
    layers=(LayerLayout(kind="linear", parts=(STATE,)), LayerLayout(kind="full", parts=(KV, KV))),
    chunk_tokens=64,
)


@given(one=tokens_lists, other=tokens_lists, width=st.integers(1, 5))
def test_names_are_equal_exactly_as_far_as_the_complete_blocks_are(
    one: list[int], other: list[int], width: int
) -> None:
    a = hash_prompt(one, block_tokens=width, namespace=b"m")
    b = hash_prompt(other, block_tokens=width, namespace=b"m")
    for end, (x, y) in enumerate(zip(a.blocks, b.blocks, strict=False), start=1):
        assert (x == y) == (one[: end * width] == other[: end * width])
        assert (x.check == y.check) == (
            one[(end - 1) * width : end * width] == other[(end - 1) * width : end * width]
        )


@given(tokens=tokens_lists, width=st.integers(1, 5))
def test_a_hit_always_leaves_a_token_to_compute(tokens: list[int], width: int) -> None:
    prompt = hash_prompt(tokens, block_tokens=width, namespace=b"m")
    assert len(prompt.blocks) == len(tokens) // width
    assert prompt.reusable_blocks * width < max(1, len(tokens))
    assert prompt.reusable_blocks <= len(prompt.blocks)
    assert (prompt.reusable_blocks + 1) * width >= len(tokens)


def test_another_model_gives_other_names() -> None:
    one = hash_prompt(range(8), block_tokens=4, namespace=b"weights 1")
    other = hash_prompt(range(8), block_tokens=4, namespace=b"weights 2")
    assert {*one.blocks[0], *one.blocks[1]}.isdisjoint({*other.blocks[0], *other.blocks[1]})


def test_tokens_are_told_apart_up_to_32_bits() -> None:
    low, high = (hash_prompt([t], block_tokens=1, namespace=b"") for t in (1, 1 + 2**16))
    assert low.blocks != high.blocks


def test_geometry_weighs_what_the_layout_weighs() -> None:
    geometry = Geometry.of(LAYOUT, block_tokens=128)
    assert geometry.block_bytes == 128 * LAYOUT.token_bytes == 128 * 2 * 64
    assert geometry.snapshot_bytes == LAYOUT.state_bytes == 64
    assert Geometry.of(LAYOUT).block_tokens == LAYOUT.chunk_tokens


@pytest.mark.parametrize("block_tokens", [32, 65, 100])
def test_blocks_that_are_not_whole_chunks_are_refused(block_tokens: int) -> None:
    with pytest.raises(CacheError, match="multiple of 64"):
        Geometry.of(LAYOUT, block_tokens=block_tokens)


def test_a_model_without_growing_cache_is_refused() -> None:
    pure = CacheLayout(layers=(LayerLayout(kind="linear", parts=(STATE,)),), chunk_tokens=64)
    with pytest.raises(CacheError, match="full-attention"):
        Geometry.of(pure)
