"""Whoever joins or leaves, each sequence of a batch goes on as if it were alone."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import PreTrainedModel

from prfaas_lab.model.buffers import chunk_spans
from prfaas_lab.model.torch_batch import DecodeBatch
from prfaas_lab.model.torch_cache import new_cache
from prfaas_lab.model.torch_reference import compare, forward, generate

pytestmark = pytest.mark.model
ROWS = 4


@pytest.mark.parametrize("seed", range(2))
def test_every_sequence_goes_on_as_if_it_were_alone(model: PreTrainedModel, seed: int) -> None:
    draw = random.Random(seed)
    batch = DecodeBatch(model, ROWS)
    running: dict[int, tuple[list[int], list[int]]] = {}
    ended: list[tuple[list[int], list[int]]] = []
    for number in range(14):
        prompt = [draw.randrange(384) for _ in range(draw.choice([1, 3, 64, 65, 200, 300]))]
        running[number] = prompt, [_join(model, batch, number, prompt)]
        while len(running) == ROWS or (running and draw.random() < 0.7):
            for key, token in batch.step().items():
                running[key][1].append(token)
            for key in [key for key in running if draw.random() < 0.2]:
                batch.leave(key)
                ended.append(running.pop(key))
    assert len(batch) == len(running)
    for prompt, tokens in [*ended, *running.values()]:
        assert compare(generate(model, prompt, len(tokens), 64), tokens) in ("match", "tie")


def test_a_row_that_moves_after_a_longer_one_took_its_place_keeps_all_its_tokens(
    model: PreTrainedModel,
) -> None:
    batch = DecodeBatch(model, ROWS)
    for number in range(3):
        _join(model, batch, number, [number + 1] * 5)
    batch.step()
    batch.leave(2)
    prompt = list(range(250))
    tokens = [_join(model, batch, "long", prompt)]
    batch.leave(0)
    tokens += [batch.step()["long"] for _ in range(8)]
    assert compare(generate(model, prompt, 9, 64), tokens) in ("match", "tie")


@torch.inference_mode()
def _join(model: PreTrainedModel, batch: DecodeBatch, key: object, prompt: list[int]) -> int:
    cache = new_cache(model)
    for first, end in chunk_spans(len(prompt), 64):
        token = int(forward(model, cache, prompt[first:end]).argmax())
    batch.join(key, cache, len(prompt), token)
    return token
