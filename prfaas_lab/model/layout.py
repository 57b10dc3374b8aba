"""What a model's KVCache is made of: which tensors grow with the tokens, which carry fixed state.

No torch here: transport, planner and paced engines reckon with layouts too.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, order=True)
class SegmentKey:
    """One piece of a request's KVCache on the wire.

    `layer` is the model's layer index, `part` the index of the tensor within the layer (see
    `LayerLayout.parts`), `chunk` the prefill chunk it belongs to. A fixed-state part is sent once,
    with the last chunk.
    """

    layer: int
    part: int
    chunk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One tensor of a layer's cache.

    `growing`: token-major, [tokens, *shape], so that a chunk's bytes are contiguous.
    `state`: fixed [*shape], valid only for the exact length it was computed at.
    """

    name: str
    kind: Literal["growing", "state"]
    shape: tuple[int, ...]
    itemsize: int

    @property
    def unit_bytes(self) -> int:
        """Bytes per token (growing), or of the whole state (state)."""
        size = self.itemsize
        for dimension in self.shape:
            size *= dimension
        return size


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLayout:
    """The cache of one layer: parts in the order of `SegmentKey.part`."""

    kind: Literal["linear", "full", "sliding"]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """The cache of a whole model, and the chunk that prefill and transfer share."""

    layers: tuple[LayerLayout, ...]
    chunk_tokens: int

    @property
    def state_bytes(self) -> int:
        """S_kv at length 0: the fixed state of one request."""
        return sum(p.unit_bytes for layer in self.layers for p in layer.parts if p.kind == "state")

    @property
    def token_bytes(self) -> int:
        """Growth of S_kv per token."""
        return sum(p.unit_bytes for layer in self.layers for p in layer.parts if p.kind == "growing")

    def request_bytes(self, tokens: int, *, cached_tokens: int = 0) -> int:
        """S_kv that crosses for a prompt of `tokens`, of which the receiver has `cached_tokens`."""
        return self.state_bytes + self.token_bytes * (tokens - cached_tokens)

    def part(self, key: SegmentKey) -> Part:
        """The tensor that a segment is of."""
        return self.layers[key.layer].parts[key.part]

    def segment_bytes(self, key: SegmentKey, tokens: int, *, cached_tokens: int = 0) -> int:
        """Size of one segment of a prompt of `tokens` whose first chunk starts at `cached_tokens`."""
        part = self.part(key)
        if part.kind == "state":
            return part.unit_bytes
        start = cached_tokens + key.chunk * self.chunk_tokens
        return part.unit_bytes * max(0, min(self.chunk_tokens, tokens - start))

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that differ whenever two layouts do; compared in the transport's handshake."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()
