"""Damage on purpose: proves that a lost state or block is noticed. Reached by a hidden option only.

The filter sits on the prefill side, before anything is checksummed: the transfer stays intact, so that
only the tokens can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from prfaas_lab.model.layout import CacheLayout, SegmentKey

Corruption = Literal["recurrent-state", "conv-state", "kv-block"]


def corruption_filter(
    kind: Corruption, layout: CacheLayout
) -> Callable[[SegmentKey, memoryview], memoryview]:
    """Zeroes one layer's recurrent state, one layer's conv state, or a prompt's first KV block."""
    if kind == "kv-block":
        return lambda key, segment: _zeroed(segment) if _in_first_block(key, layout) else segment
    target = _first_state(kind.removesuffix("-state"), layout)
    return lambda key, segment: _zeroed(segment) if (key.layer, key.part) == target else segment


def _zeroed(segment: memoryview) -> memoryview:
    return memoryview(bytes(segment.nbytes))


def _in_first_block(key: SegmentKey, layout: CacheLayout) -> bool:
    return key.chunk == 0 and layout.part(key).kind == "growing"


def _first_state(name: str, layout: CacheLayout) -> tuple[int, int]:
    for index, layer in enumerate(layout.layers):
        for number, part in enumerate(layer.parts):
            if part.kind == "state" and part.name.startswith(name):
                return index, number
    raise LookupError(f"this model has no {name} state")
