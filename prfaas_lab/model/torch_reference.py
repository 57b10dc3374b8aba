"""What one process alone would have answered: the measure of a disaggregated run's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import DynamicCache, PreTrainedModel

from prfaas_lab.model.buffers import chunk_spans
from prfaas_lab.model.torch_cache import new_cache

TIE_GAP = 1e-4
"""Two logits this close may swap under another batch size: float32 noise is about 1.6e-5."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Greedy tokens of one process, and how far each led before the runner-up."""

    tokens: tuple[int, ...]
    top2_gaps: tuple[float, ...]


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompt: Sequence[int],
    output_tokens: int,
    chunk_tokens: int,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Reference:
    """Greedy generation on the engines' chunk schedule; bit-identical prefill needs the same one.

    `stop` is asked between chunks and tokens, so that a caller in another thread can end it early.
    """
    cache = new_cache(model)
    logits = torch.empty(0)
    for first, end in chunk_spans(len(prompt), chunk_tokens):
        logits = forward(model, cache, prompt[first:end])
        if stop():
            break
    tokens: list[int] = []
    gaps: list[float] = []
    while len(tokens) < output_tokens and not stop():
        best, second = torch.topk(logits, 2).values.tolist()
        tokens.append(int(logits.argmax()))
        gaps.append(best - second)
        if len(tokens) < output_tokens:
            logits = forward(model, cache, tokens[-1:])
    return Reference(tuple(tokens), tuple(gaps))


def forward(model: PreTrainedModel, cache: DynamicCache, tokens: Sequence[int]) -> torch.Tensor:
    """Extend one sequence by some tokens; the logits [vocabulary] after the last of them."""
    ids = torch.tensor([tokens], dtype=torch.long)
    logits: torch.Tensor = model(
        input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits
    return logits[0, -1]


def compare(reference: Reference, tokens: Sequence[int]) -> Literal["match", "tie", "mismatch"]:
    """`tie`: they part where the reference's two best logits were within `TIE_GAP` of each other."""
    return explain(reference, tokens)[0]


def explain(reference: Reference, tokens: Sequence[int]) -> tuple[Literal["match", "tie", "mismatch"], str]:
    """The outcome of `compare`, and where and how the two part (empty for a match)."""
    for index, (expected, gap) in enumerate(zip(reference.tokens, reference.top2_gaps, strict=True)):
        got = tokens[index] if index < len(tokens) else None
        if got == expected:
            continue
        outcome: Literal["tie", "mismatch"] = "tie" if got is not None and gap < TIE_GAP else "mismatch"
        return outcome, f"token {index}: {got} instead of {expected}, which led by {gap:.2g}"
    if len(tokens) > len(reference.tokens):
        return "mismatch", f"{len(tokens)} tokens instead of {len(reference.tokens)}"
    return "match", ""
