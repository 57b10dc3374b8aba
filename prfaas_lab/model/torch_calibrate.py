"""Measures a profile of a real model on this machine: what its engines take, alone, on one core."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import torch

from prfaas_lab.model.buffers import chunk_spans
from prfaas_lab.model.profile import CacheCurve, Decode, PrefillCurve, Profile, StepCurve, rising
from prfaas_lab.model.torch_batch import DecodeBatch
from prfaas_lab.model.torch_build import build, one_thread
from prfaas_lab.model.torch_cache import layout_of, new_cache
from prfaas_lab.model.torch_reference import forward
from prfaas_lab.spec.scenario import Model

LENGTHS = (64, 128, 256, 512, 1024, 2048)
BATCHES = (1, 2, 4, 8)
_CONTEXT_TOKENS = 256
_STEPS = 12


def calibrate(spec: Model, *, chunk_tokens: int, repeats: int) -> Profile:
    """Least CPU time of `repeats` tries: what the work takes, whoever else uses the machine meanwhile."""
    one_thread()
    model = build(spec)
    layout = layout_of(model, chunk_tokens)
    vocabulary = model.config.get_text_config().vocab_size
    rng = random.Random(1)

    def prompt(tokens: int) -> list[int]:
        return [rng.randrange(8, vocabulary) for _ in range(tokens)]

    def prefill(tokens: Sequence[int]) -> None:
        with torch.inference_mode():
            cache = new_cache(model)
            for first, end in chunk_spans(len(tokens), chunk_tokens):
                forward(model, cache, tokens[first:end])

    def step_s(rows: int) -> float:
        batch = DecodeBatch(model, rows)
        for row in range(rows):
            with torch.inference_mode():
                cache, tokens = new_cache(model), prompt(_CONTEXT_TOKENS)
                last = int(forward(model, cache, tokens).argmax())
            batch.join(row, cache, len(tokens), last)
        return _least([batch.step] * (_STEPS + repeats))

    name = spec.path or spec.name or "model"
    how = f"measured by prfaas-lab calibrate: least CPU time of {repeats} tries, one thread, "
    prefill_s = [(n, _least([lambda n=n: prefill(prompt(n))] * repeats)) for n in LENGTHS]  # type: ignore[misc]
    steps = [(rows, step_s(rows)) for rows in BATCHES]
    return Profile(
        hardware=name,
        model=name,
        gpus=1,
        prefill=PrefillCurve(source=how + f"chunks of {chunk_tokens}", knots=rising(prefill_s)),
        kvcache=CacheCurve(
            source="the layout of the built model",
            knots=tuple((n, layout.request_bytes(n)) for n in (LENGTHS[0], LENGTHS[-1])),
        ),
        decode=Decode(
            bs_max=BATCHES[-1],
            step=StepCurve(source=how + f"{_CONTEXT_TOKENS} tokens of context", knots=rising(steps)),
        ),
    )


def _least(tries: Sequence[Callable[[], object]]) -> float:
    """Seconds of the fastest, by this thread's CPU time."""
    seconds = []
    for work in tries:
        began = time.thread_time()
        work()
        seconds.append(time.thread_time() - began)
    return min(seconds)
