"""Tokens drawn from logits: temperature and nucleus (top-p), each sequence with its own generator."""

from __future__ import annotations

import torch

from prfaas_lab.workload.request import Sampling


class Sampler:
    """Picks one sequence's tokens. Exactly one number is drawn for each, so that whoever goes on after
    `drawn` tokens (decode, after prefill drew the first) goes on as one process would have."""

    def __init__(self, sampling: Sampling, *, drawn: int = 0) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)
        for _ in range(drawn):
            self._draw()

    def pick(self, logits: torch.Tensor) -> int:
        """The next token after logits [vocabulary]."""
        if self._sampling.greedy:
            return int(logits.argmax())
        likely, order = torch.softmax(logits.double() / self._sampling.temperature, 0).sort(descending=True)
        reached = likely.cumsum(0)
        kept = int(torch.searchsorted(reached, self._sampling.top_p)) + 1  # the one that reaches top_p too
        total = reached[min(kept, len(reached)) - 1]
        return int(order[min(int(torch.searchsorted(reached, self._draw() * total)), len(order) - 1)])

    def _draw(self) -> torch.Tensor:
        return torch.rand(1, generator=self._generator, dtype=torch.float64)
