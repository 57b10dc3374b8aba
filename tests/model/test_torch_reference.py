"""The reference is what transformers itself generates, and a difference is called by its name."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from prfaas_lab.model.torch_reference import Reference, compare, explain, generate

pytestmark = pytest.mark.model
REFERENCE = Reference(tokens=(4, 5, 6), top2_gaps=(0.5, 5e-5, 0.3))


@pytest.mark.parametrize("tokens", [1, 65, 200])
def test_the_reference_is_what_the_library_generates(model: PreTrainedModel, tokens: int) -> None:
    prompt = [i * 31 % 384 for i in range(tokens)]
    ids = torch.tensor([prompt])
    theirs = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    ours = generate(model, prompt, 12, 64)
    assert compare(ours, theirs[0, tokens:].tolist()) in ("match", "tie")
    assert len(ours.tokens) == len(ours.top2_gaps) == 12


def test_generation_ends_early_when_it_is_told_to(model: PreTrainedModel) -> None:
    asked = iter([False] * 4)
    assert len(generate(model, [1, 2, 3], 12, 64, stop=lambda: next(asked, True)).tokens) == 3


@pytest.mark.parametrize(
    ("tokens", "outcome"),
    [
        ((4, 5, 6), "match"),
        ((4, 9, 6), "tie"),
        ((4, 9, 1), "tie"),
        ((9, 5, 6), "mismatch"),
        ((4, 5, 9), "mismatch"),
        ((4,), "mismatch"),
        ((4, 5), "mismatch"),
        ((), "mismatch"),
        ((4, 5, 6, 7), "mismatch"),
    ],
)
def test_only_a_flip_between_near_equal_logits_is_a_tie(tokens: tuple[int, ...], outcome: str) -> None:
    assert compare(REFERENCE, tokens) == outcome


def test_a_difference_says_where_and_how_far() -> None:
    assert explain(REFERENCE, (4, 5, 9)) == ("mismatch", "token 2: 9 instead of 6, which led by 0.3")
    assert explain(REFERENCE, (4, 5, 6)) == ("match", "")
