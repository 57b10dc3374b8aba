"""Draws follow the probabilities, keep to the nucleus, and can be taken up where another stopped."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from prfaas_lab.model.torch_sampling import Sampler
from prfaas_lab.workload.request import GREEDY, Sampling

pytestmark = pytest.mark.model
PROBABILITIES = torch.tensor([0.05, 0.5, 0.3, 0.15])
LOGITS = PROBABILITIES.log()
DRAWS = 3000


def draws(sampling: Sampling, number: int = DRAWS) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.pick(LOGITS) for _ in range(number)]


def test_greedy_takes_the_likeliest() -> None:
    assert set(draws(GREEDY, 5)) == {1}


def test_draws_follow_the_probabilities() -> None:
    counts = Counter(draws(Sampling(temperature=1.0)))
    for token, probability in enumerate(PROBABILITIES.tolist()):
        assert counts[token] / DRAWS == pytest.approx(probability, abs=0.03)


def test_a_low_temperature_sharpens() -> None:
    warm, cold = (Counter(draws(Sampling(temperature=t)))[1] for t in (1.0, 0.3))
    assert cold > 1.3 * warm


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, {1}), (0.5, {1}), (0.6, {1, 2}), (1.0, {0, 1, 2, 3})])
def test_only_the_nucleus_is_drawn_from(top_p: float, kept: set[int]) -> None:
    assert set(draws(Sampling(temperature=1.0, top_p=top_p))) == kept


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    one, other = Sampling(temperature=1.0, seed=1), Sampling(temperature=1.0, seed=2)
    assert draws(one, 50) == draws(one, 50) != draws(other, 50)


def test_who_goes_on_after_the_first_token_goes_on_as_one_process_would() -> None:
    sampling = Sampling(temperature=1.0, seed=7)
    rest = Sampler(sampling, drawn=1)
    assert draws(sampling, 20)[1:] == [rest.pick(LOGITS) for _ in range(19)]
