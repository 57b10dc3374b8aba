"""What a prefill computes, on its way to the receiver and to the cache."""

from __future__ import annotations

from prfaas_lab.engine.executor import Emit
from prfaas_lab.engine.kept import Segment
from prfaas_lab.model.layout import CacheLayout, SegmentKey


class Computed:
    """Stands between a prefill and its receiver: passes segments on, and keeps what a pool could use.

    States at a boundary before the prompt's end were asked for by the cache: they are not passed on.
    """

    def __init__(self, layout: CacheLayout, prompt_tokens: int, cached_tokens: int, emit: Emit) -> None:
        self.blocks: dict[int, list[Segment]] = {}
        self.snapshots: dict[int, list[Segment]] = {}
        self.tail: list[Segment] = []
        """What is sent and belongs to no block and no snapshot."""
        self._layout, self._prompt_tokens, self._cached_tokens = layout, prompt_tokens, cached_tokens
        self._last = (prompt_tokens - 1) // layout.chunk_tokens
        self._emit = emit

    def emit(self, key: SegmentKey, segment: memoryview) -> None:
        first = key.chunk * self._layout.chunk_tokens
        end = first + self._layout.chunk_tokens
        if self._layout.part(key).kind == "growing":
            if end > self._prompt_tokens:
                self.tail.append((key, segment))
            elif self._cached_tokens <= first:
                self.blocks.setdefault(first, []).append((key, segment))
        elif key.chunk != self._last:
            self.snapshots.setdefault(end, []).append((key, segment))
            return
        else:
            self.tail.append((key, segment))
        self._emit(key, segment)
