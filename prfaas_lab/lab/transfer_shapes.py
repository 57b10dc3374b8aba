"""What the transfer bench moves: plain buffers, and the layer and chunk pattern of real models. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prfaas_lab.model.layout import CacheLayout, LayerLayout, Part, SegmentKey
from prfaas_lab.units import format_size

KIB, MIB = 1024, 1024 * 1024
CHUNK_TOKENS = 1024
"""Chunk of the model patterns among the goodput shapes: one chunk, and the states of a request."""
PACED_TOKENS, PACED_CHUNK_TOKENS = 32 * 1024, 8 * 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """A transfer as a list of segments, in the order in which they become ready."""

    name: str
    sizes: tuple[int, ...]

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes)


@dataclass(frozen=True, slots=True)
class PacedShape:
    """A transfer whose segments become ready while a prefill computes."""

    name: str
    sizes: tuple[int, ...]
    ready_s: tuple[float, ...]
    """When each segment is ready, from the start of the prefill."""
    largest_step_bytes: int
    """The most that one layer of one chunk adds."""


def plain(count: int, size: int) -> Shape:
    return Shape(f"{count} x {format_size(size)}", (size,) * count)


def qwen3_next_80b(chunk_tokens: int) -> CacheLayout:
    """48 layers, every fourth full attention (2 heads of 256); bfloat16, recurrent states in float32."""
    parts = tuple(Part(name=name, kind="growing", shape=(2, 256), itemsize=2) for name in ("keys", "values"))
    return _hybrid(chunk_tokens, [n % 4 == 3 for n in range(48)], parts, conv_channels=8192)


def kimi_linear_48b(chunk_tokens: int) -> CacheLayout:
    """27 layers, 7 of them MLA with a latent of 512 + 64; bfloat16, recurrent states in float32."""
    sizes = (("latent", 512), ("rope", 64))
    parts = tuple(Part(name=name, kind="growing", shape=(size,), itemsize=2) for name, size in sizes)
    return _hybrid(chunk_tokens, [n % 4 == 3 or n == 26 for n in range(27)], parts, conv_channels=12288)


def of_model(name: str, layout: CacheLayout, tokens: int) -> Shape:
    sizes = [size for step in steps(layout, tokens) for size in step]
    return Shape(f"{name}, {tokens} tokens", tuple(sizes))


def paced(name: str, layout: CacheLayout, tokens: int, compute_s: float) -> PacedShape:
    """Every layer of every chunk takes the same share of `compute_s`, and is ready at its end."""
    all_steps = list(steps(layout, tokens))
    ready = [compute_s * (number + 1) / len(all_steps) for number in range(len(all_steps))]
    return PacedShape(
        name=f"{name}, {tokens} tokens, paced",
        sizes=tuple(size for step in all_steps for size in step),
        ready_s=tuple(at for at, step in zip(ready, all_steps, strict=True) for _ in step),
        largest_step_bytes=max(map(sum, all_steps)),
    )


def steps(layout: CacheLayout, tokens: int) -> Iterator[tuple[int, ...]]:
    """The segments that each layer of each chunk makes ready; states come with the last chunk."""
    chunks = -(-tokens // layout.chunk_tokens)
    for chunk in range(chunks):
        for number, layer in enumerate(layout.layers):
            yield tuple(
                layout.segment_bytes(SegmentKey(number, part, chunk), tokens)
                for part, found in enumerate(layer.parts)
                if found.kind == "growing" or chunk == chunks - 1
            )


def _hybrid(
    chunk_tokens: int, is_full: list[bool], growing: tuple[Part, ...], *, conv_channels: int
) -> CacheLayout:
    """Linear layers carry 32 heads of 128 x 128 and four steps of convolution."""
    state = (
        Part(name="conv", kind="state", shape=(conv_channels, 4), itemsize=2),
        Part(name="recurrent", kind="state", shape=(32, 128, 128), itemsize=4),
    )
    layers = tuple(
        LayerLayout(kind="full", parts=growing) if full else LayerLayout(kind="linear", parts=state)
        for full in is_full
    )
    return CacheLayout(layers=layers, chunk_tokens=chunk_tokens)


MODELS = {"qwen3-next-80b": qwen3_next_80b, "kimi-linear-48b": kimi_linear_48b}
SHAPES: tuple[Shape, ...] = (
    plain(1, 32 * MIB),
    plain(32, MIB),
    plain(512, 64 * KIB),
    *(of_model(name, model(CHUNK_TOKENS), CHUNK_TOKENS) for name, model in MODELS.items()),
)
