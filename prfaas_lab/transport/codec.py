"""Wire compression, sans I/O: a segment made shorter before it leaves, and whole again where it lands.

Each segment is encoded by itself, so that it can be cut, resumed, fetched again and decoded like any
other, whatever became of its neighbours. What would not become shorter is not encoded.

    zstd  lossless. The bytes of a segment's numbers are sorted into planes: all first bytes, all second
          ones, and so on. Signs and exponents repeat and share a plane; mantissas are noise. Each plane
          is a zstd frame, or as it is where that is not longer.
              on the wire: length u32 of each plane (big endian), then the planes
    int8  lossy, and only for attention's growing tensors: states cross as they are. Every vector, of one
          token and head, has a scale of its own, so that what a token becomes depends on no other.
              on the wire: scale f32 of each vector, then an i8 for each number (both little endian)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import zstandard

from prfaas_lab.model.layout import CacheLayout, Part, SegmentKey
from prfaas_lab.transport.errors import CorruptSegment
from prfaas_lab.transport.frames import Bytes

Compression = Literal["none", "zstd", "int8"]

_ZSTD_LEVEL = 1  # sign and exponent bytes of a cache are skewed but do not repeat: searching finds no more
_LENGTH_BYTES = 4
_LARGEST = 1e38
"""A segment with larger numbers than this, infinities or what is no number is not quantised."""
_STEPS = 127
_FLOAT: np.dtype[Any] = np.dtype("<f4")


class Codec(Protocol):
    """How both ends of a connection encode segments, of one layout."""

    number: int
    """Stands for it in the handshake; 0 is no codec at all."""
    lossy: bool
    """What is decoded may differ from what was encoded."""

    def encode(self, key: SegmentKey, segment: memoryview) -> Bytes:
        """A shorter form of the segment, or the segment itself where there is none."""

    def decode(self, key: SegmentKey, encoded: memoryview, place: memoryview) -> None:
        """Fill `place` with the segment. Raises CorruptSegment for what `encode` does not give."""


NAMES: tuple[Compression, ...] = ("none", "zstd", "int8")
"""By the number in the handshake."""


def codec_for(name: Compression, layout: CacheLayout) -> Codec | None:
    """The codec of this name for segments of `layout`; None for `none`."""
    match name:
        case "none":
            return None
        case "zstd":
            return PlanesCodec(layout)
        case "int8":
            return Int8Codec(layout)


def number_of(codec: Codec | None) -> int:
    """What stands for it in the handshake."""
    return 0 if codec is None else codec.number


class PlanesCodec:
    """`zstd`: byte planes, compressed where that makes them shorter."""

    number: int = NAMES.index("zstd")
    lossy: bool = False

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout
        self._compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        self._decompressor = zstandard.ZstdDecompressor()

    def encode(self, key: SegmentKey, segment: memoryview) -> Bytes:
        part = _part(self._layout, key)
        if part is None:
            return segment
        planes = np.frombuffer(segment, np.uint8).reshape(-1, part.itemsize).T
        encoded = [self._shorter(plane.tobytes()) for plane in planes]
        lengths = struct.pack(f"!{len(encoded)}I", *map(len, encoded))
        whole = b"".join([lengths, *encoded])
        return whole if len(whole) < len(segment) else segment

    def decode(self, key: SegmentKey, encoded: memoryview, place: memoryview) -> None:
        part = _part_of_encoded(self._layout, key)
        planes = np.frombuffer(place, np.uint8).reshape(-1, part.itemsize).T
        for plane, piece in zip(planes, _pieces(key, encoded, part.itemsize), strict=True):
            plane[:] = np.frombuffer(self._longer(key, piece, len(plane)), np.uint8)

    def _shorter(self, plane: bytes) -> bytes:
        """Never a frame as long as the plane: its length is what says that a plane is as it is."""
        return min(plane, self._compressor.compress(plane), key=len)

    def _longer(self, key: SegmentKey, piece: memoryview, size: int) -> Bytes:
        """`size` bytes, and no more memory than that: what a frame says of itself is not believed."""
        if len(piece) == size:
            return piece
        try:
            about = zstandard.get_frame_parameters(piece)
            if about.content_size != size or about.window_size > size:
                raise CorruptSegment(f"{key}: a plane of {size} bytes says it has {about.content_size}")
            return self._decompressor.decompress(piece, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptSegment(f"{key}: a plane is not what was compressed: {error}") from error


class Int8Codec:
    """`int8`: attention's vectors, each as a scale and a whole number from -127 to 127 per element."""

    number: int = NAMES.index("int8")
    lossy: bool = True

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout

    def encode(self, key: SegmentKey, segment: memoryview) -> Bytes:
        part = _part(self._layout, key)
        if part is None or not _is_quantised(part) or not len(segment):
            return segment
        vectors = np.frombuffer(segment, _FLOAT).reshape(-1, part.shape[-1])
        largest = np.abs(vectors).max(axis=1, keepdims=True)
        if not (largest < _LARGEST).all():
            return segment
        scales = largest / _STEPS
        steps = np.divide(vectors, scales, out=np.zeros_like(vectors), where=scales > 0)
        # A scale so small that it is itself rounded may leave a step or two beyond the last.
        whole = np.clip(np.rint(steps), -_STEPS, _STEPS).astype(np.int8)
        encoded = scales.astype(_FLOAT).tobytes() + whole.tobytes()
        return encoded if len(encoded) < len(segment) else segment

    def decode(self, key: SegmentKey, encoded: memoryview, place: memoryview) -> None:
        part = _part_of_encoded(self._layout, key)
        width = part.shape[-1] if part.shape else 0
        count = len(place) // (width * _FLOAT.itemsize) if width else 0
        split = count * _FLOAT.itemsize
        if not _is_quantised(part) or len(encoded) != split + count * width:
            raise CorruptSegment(f"{key}: {len(encoded)} bytes are no quantised form of {len(place)}")
        scales = np.frombuffer(encoded[:split], _FLOAT).reshape(-1, 1)
        if not ((scales >= 0) & (scales <= _LARGEST / _STEPS)).all():
            raise CorruptSegment(f"{key}: a scale is out of range")
        whole = np.frombuffer(encoded[split:], np.int8).reshape(-1, width)
        np.multiply(whole, scales, out=np.frombuffer(place, _FLOAT).reshape(-1, width))


def _is_quantised(part: Part) -> bool:
    return part.kind == "growing" and part.itemsize == _FLOAT.itemsize and bool(part.shape)


def _part(layout: CacheLayout, key: SegmentKey) -> Part | None:
    """The tensor that a segment is of; None for what is not part of the cache, such as a first token."""
    if key.layer >= len(layout.layers) or key.part >= len(layout.layers[key.layer].parts):
        return None
    return layout.layers[key.layer].parts[key.part]


def _part_of_encoded(layout: CacheLayout, key: SegmentKey) -> Part:
    part = _part(layout, key)
    if part is None:
        raise CorruptSegment(f"{key} came encoded, and is no part of the cache")
    return part


def _pieces(key: SegmentKey, encoded: memoryview, count: int) -> Sequence[memoryview]:
    """The planes as they were encoded."""
    start = count * _LENGTH_BYTES
    if len(encoded) < start:
        raise CorruptSegment(f"{key}: {len(encoded)} bytes, which is too few for {count} planes")
    lengths = struct.unpack_from(f"!{count}I", encoded)
    if start + sum(lengths) != len(encoded):
        raise CorruptSegment(f"{key}: the lengths of its planes do not add up to {len(encoded)} bytes")
    pieces = []
    for length in lengths:
        pieces.append(encoded[start : start + length])
        start += length
    return pieces
