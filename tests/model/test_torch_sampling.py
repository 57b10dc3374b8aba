"""Draws follow the probabilities, keep to the nucleus, and can be taken up where another stopped."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from prfaas_lab.model.torch_sampling import Sampler

pytestmark = pytest.mark.model
PROBABILITIES = torch.tensor([0.05, 0.5, 0.3, 0.15])
LOGITS = PROBABILITIES.log()
DRAWS = 3000


def draws(number: int = DRAWS, **how: float) -> list[int]:
    sampler = Sampler(**{"temperature": 1.0, **how})
    return [sampler.pick(LOGITS) for _ in range(number)]


def test_greedy_takes_the_likeliest() -> None:
    assert set(draws(5, temperature=0.0)) == {1}


def test_draws_follow_the_probabilities() -> None:
    counts = Counter(draws())
    for token, probability in enumerate(PROBABILITIES.tolist()):
        assert counts[token] / DRAWS == pytest.approx(probability, abs=0.03)


def test_a_low_temperature_sharpens() -> None:
    warm, cold = (Counter(draws(temperature=t))[1] for t in (1.0, 0.3))
    assert cold > 1.3 * warm


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, {1}), (0.5, {1}), (0.6, {1, 2}), (1.0, {0, 1, 2, 3})])
def test_only_the_nucleus_is_drawn_from(top_p: float, kept: set[int]) -> None:
    assert set(draws(top_p=top_p)) == kept


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    assert draws(50, seed=1) == draws(50, seed=1) != draws(50, seed=2)


def test_who_goes_on_after_the_first_token_goes_on_as_one_process_would() -> None:
    rest = Sampler(temperature=1.0, seed=7, drawn=1)
    assert draws(20, seed=7)[1:] == [rest.pick(LOGITS) for _ in range(19)]
