"""A batch of sequences of different lengths that decode together, with join and leave.

Sequences sit in rows. Each row's keys and values are right-padded in one block of memory per layer,
and a step writes one token behind each row's own end: nothing is moved while membership is unchanged.
A leaving row is filled with the last one, so that the rows in use are always the first ones.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from prfaas_lab.model.buffers import Produced, chunk_spans
from prfaas_lab.model.layout import CacheLayout, SegmentKey
from prfaas_lab.model.torch_cache import adopt_state, new_cache, segment_of, state_items
from prfaas_lab.model.torch_sampling import Sampler

_GRAIN_TOKENS = 256


@dataclass(slots=True)
class _Sequence:
    """One row: how many tokens are cached, and the token that is to be fed next."""

    key: Hashable
    joined_at: int
    tokens: int
    last_token: int
    sampler: Sampler | None
    marked_at: int = 0
    marks: list[tuple[SegmentKey, memoryview]] = field(default_factory=list)
    """The states at the chunk boundary `marked_at`: they are updated in place, so they are copied there."""


class DecodeBatch:
    """Sequences by key; `step` extends each by one token, greedy or sampled. One thread at a time.

    With a `layout`, the states of a row are copied whenever it comes to a chunk boundary, so that what
    was computed up to there can be `produced`.
    """

    def __init__(self, model: PreTrainedModel, max_rows: int, layout: CacheLayout | None = None) -> None:
        self._model, self._max_rows, self._layout = model, max_rows, layout
        self._rows: list[_Sequence] = []
        self._cache = new_cache(model)
        self._forget()

    def __len__(self) -> int:
        return len(self._rows)

    @torch.inference_mode()
    def join(
        self,
        key: Hashable,
        cache: DynamicCache,
        tokens: int,
        last_token: int,
        sampler: Sampler | None = None,
    ) -> None:
        """Add a sequence of `tokens` cached tokens, of which `last_token` is the yet uncached next.
        Without a sampler it is greedy."""
        assert all(sequence.key != key for sequence in self._rows), f"{key} has joined already"
        assert len(self) < self._max_rows, "the batch is full"
        row = len(self)
        for mine, theirs in zip(self._cache.layers, cache.layers, strict=True):
            if isinstance(mine, _Rows | _States):
                mine.put(row, theirs)
        self._rows.append(_Sequence(key, tokens, tokens, last_token, sampler))

    @torch.inference_mode()
    def produced(self, key: Hashable) -> Produced | None:
        """What was computed of a sequence since it joined, as far as the last chunk boundary that it came
        to; None when it came to none."""
        row = self._row(key)
        sequence = self._rows[row]
        if not sequence.marked_at:
            return None
        assert self._layout is not None, "marks are made of a layout"
        width = self._layout.chunk_tokens
        first = sequence.joined_at // width * width
        segments = [
            segment
            for span in chunk_spans(sequence.marked_at, width, start=first)
            for segment in self._growing(row, span, width)
        ]
        return Produced(first, sequence.marked_at, (*segments, *sequence.marks))

    @torch.inference_mode()
    def leave(self, key: Hashable) -> None:
        """Remove a sequence; its row goes to the last one."""
        row, last = self._row(key), len(self) - 1
        if row != last:
            for layer in self._cache.layers:
                if isinstance(layer, _Rows | _States):
                    layer.move(last, row, self._rows[last].tokens)
        self._rows[row] = self._rows[last]
        self._rows.pop()
        if not self._rows:
            self._forget()

    @torch.inference_mode()
    def step(self) -> dict[Any, int]:
        """The next token of every sequence."""
        lengths = torch.tensor([sequence.tokens for sequence in self._rows])
        width = int(lengths.max()) + 1
        for layer in self._cache.layers:
            if isinstance(layer, _Rows | _States):
                layer.open(lengths, width)
        logits = self._model(
            input_ids=torch.tensor([sequence.last_token for sequence in self._rows]).unsqueeze(1),
            attention_mask=(torch.arange(width) <= lengths.unsqueeze(1)).long(),
            position_ids=lengths.unsqueeze(1),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        for row, token in enumerate(self._choose(logits[:, -1])):
            self._extend(row, token)
        return {sequence.key: sequence.last_token for sequence in self._rows}

    def _choose(self, logits: torch.Tensor) -> list[int]:
        """The next token of every row of logits [rows, vocabulary]."""
        tokens: list[int] = logits.argmax(-1).tolist()
        for row, sequence in enumerate(self._rows):
            if sequence.sampler is not None:
                tokens[row] = sequence.sampler.pick(logits[row])
        return tokens

    def _extend(self, row: int, token: int) -> None:
        """Note a row's new token, and its states if what is cached ends with a chunk now."""
        sequence = self._rows[row]
        sequence.last_token = token
        sequence.tokens += 1
        if self._layout is None or sequence.tokens % self._layout.chunk_tokens:
            return
        chunk = sequence.tokens // self._layout.chunk_tokens - 1
        sequence.marked_at = sequence.tokens
        sequence.marks = [
            (SegmentKey(index, part, chunk), segment_of(tensor[row]))
            for index, layer in enumerate(self._cache.layers)
            if isinstance(layer, _States)
            for part, tensor in enumerate(layer.memory.values())
        ]

    def _growing(
        self, row: int, span: tuple[int, int], width: int
    ) -> Iterator[tuple[SegmentKey, memoryview]]:
        for index, layer in enumerate(self._cache.layers):
            if isinstance(layer, _Rows):
                for part, tensor in enumerate(layer.memory):
                    piece = tensor[row, :, slice(*span)].transpose(0, 1)
                    yield SegmentKey(index, part, span[0] // width), segment_of(piece)

    def _row(self, key: Hashable) -> int:
        return next(row for row, sequence in enumerate(self._rows) if sequence.key == key)

    def _forget(self) -> None:
        """Start with no memory; a batch that ran empty gives back what its longest sequence took."""
        layers: list[Any] = new_cache(self._model).layers
        self._cache.layers = [_row_layer(layer, self._max_rows) for layer in layers]


class _Rows(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of all rows, [rows, heads, capacity, dim]; a step appends at each row's end."""

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = True
        self._rows = rows
        self.memory: list[torch.Tensor] = []
        self._lengths = torch.zeros(0, dtype=torch.long)
        self._width = 0

    def put(self, row: int, layer: Any) -> None:
        tokens = layer.keys.shape[-2]
        self._reserve(tokens, row, layer)
        for memory, tensor in zip(self.memory, (layer.keys, layer.values), strict=True):
            memory[row, :, :tokens] = tensor[0]

    def move(self, source: int, target: int, tokens: int) -> None:
        for memory in self.memory:
            memory[target, :, :tokens] = memory[source, :, :tokens]

    def open(self, lengths: torch.Tensor, width: int) -> None:
        self._lengths, self._width = lengths, width
        self._reserve(width, len(lengths), None)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.arange(len(self._lengths))
        for memory, states in zip(self.memory, (key_states, value_states), strict=True):
            memory[rows, :, self._lengths] = states[:, :, 0]
        keys, values = (memory[: len(rows), :, : self._width] for memory in self.memory)
        return keys, values

    def get_seq_length(self) -> int:
        return self._width - 1

    def _reserve(self, tokens: int, used_rows: int, like: Any) -> None:
        """Room for so many tokens in each row, keeping the rows in use."""
        have = self.memory[0].shape[2] if self.memory else 0
        if tokens <= have:
            return
        capacity = -(-max(tokens, have * 3 // 2) // _GRAIN_TOKENS) * _GRAIN_TOKENS
        previous = self.memory or [like.keys, like.values]
        self.memory = [_zeros(self._rows, tensor.shape[1], capacity, tensor.shape[3]) for tensor in previous]
        if have:
            for memory, old in zip(self.memory, previous, strict=True):
                memory[:used_rows, :, :have] = old[:used_rows]


def _zeros(*shape: int) -> torch.Tensor:
    """Zeros that cost memory only where they are written (calloc, which torch.zeros does not use)."""
    return torch.from_numpy(np.zeros(shape, dtype=np.float32))


class _States(LinearAttentionLayer):
    """States of all rows; a step sees, and updates in place, those of the rows in use."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows
        self.memory: dict[tuple[str, int], torch.Tensor] = {}

    def put(self, row: int, layer: Any) -> None:
        for kind, number, tensor in state_items(layer):
            if (kind, number) not in self.memory:
                self.memory[kind, number] = tensor.new_zeros(self._rows, *tensor.shape[1:])
            self.memory[kind, number][row] = tensor[0]

    def move(self, source: int, target: int, tokens: int) -> None:
        for memory in self.memory.values():
            memory[target] = memory[source]

    def open(self, lengths: torch.Tensor, width: int) -> None:
        for (kind, number), memory in self.memory.items():
            adopt_state(self, kind, number, memory[: len(lengths)])


def _row_layer(layer: Any, rows: int) -> Any:
    if type(layer) is DynamicLayer:
        return _Rows(rows)
    if type(layer) is LinearAttentionLayer:
        return _States(rows)
    return layer
