"""The KVCache layout of a paced engine: a profile's byte curve as layers, chunks and a fixed state."""

from __future__ import annotations

from prfaas_lab.errors import LabError
from prfaas_lab.model.layout import CacheLayout, LayerLayout, Part
from prfaas_lab.model.profile import Curve

LINEAR_LAYERS = 3
"""Layers that carry the fixed state, before one that grows: the 3:1 of the models at hand, coarsened,
so that a long prompt is a few segments a chunk and little Python a byte."""
MOST_ROUNDING = 0.02
"""How far a whole number of bytes a token may lie from the profile's."""


def paced_bytes(kvcache: Curve, scale: float) -> tuple[int, int]:
    """(bytes a token, bytes of the fixed state) of a byte curve shrunk by `scale`.

    A layout grows by the same bytes with every token, so the curve is taken as the line through its
    first and last knot (the shipped hybrid lies within 1.2 % of it). Raises LabError when `scale`
    leaves too few bytes a token for a whole number to stand for them.
    """
    (first, low), (last, high) = kvcache.knots[0], kvcache.knots[-1]
    slope = (high - low) / (last - first) if last > first else 0.0
    token_bytes, state_bytes = round(slope * scale), round(max(0.0, low - slope * first) * scale)
    if token_bytes < 1 or abs(token_bytes - slope * scale) > MOST_ROUNDING * slope * scale:
        near = max(1, round(slope * scale)) / slope if slope else 1.0
        raise LabError(
            f"at this scale a token has {slope * scale:.2f} bytes of KVCache, far from a whole number",
            where="scale",
            remedy=f"write scale: {near:.5g}, or a larger one",
        )
    return token_bytes, max(LINEAR_LAYERS, state_bytes)


def paced_layout(token_bytes: int, state_bytes: int, chunk_tokens: int) -> CacheLayout:
    """Fixed state in the linear layers, the growing part in one full layer after them."""
    share, rest = divmod(state_bytes, LINEAR_LAYERS)
    linear = [
        LayerLayout(kind="linear", parts=(_part("recurrent_state", "state", share + (index < rest)),))
        for index in range(LINEAR_LAYERS)
    ]
    full = LayerLayout(kind="full", parts=(_part("keys_and_values", "growing", token_bytes),))
    return CacheLayout(layers=(*linear, full), chunk_tokens=chunk_tokens)


def _part(name: str, kind: str, size_bytes: int) -> Part:
    assert kind in ("growing", "state")
    return Part(name=name, kind="growing" if kind == "growing" else "state", shape=(size_bytes,), itemsize=1)
