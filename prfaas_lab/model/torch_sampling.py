"""Tokens drawn from logits: temperature and nucleus (top-p), each sequence with its own generator."""

from __future__ import annotations

import torch


class Sampler:
    """Picks one sequence's tokens; at temperature 0 the likeliest.

    Exactly one number is drawn for each, so that whoever goes on after `drawn` tokens (decode, after
    prefill drew the first) goes on as one process would have.
    """

    def __init__(self, *, temperature: float, top_p: float = 1.0, seed: int = 0, drawn: int = 0) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._generator = torch.Generator().manual_seed(seed)
        for _ in range(drawn):
            self._draw()

    def pick(self, logits: torch.Tensor) -> int:
        """The next token after logits [vocabulary]."""
        if self._temperature == 0:
            return int(logits.argmax())
        likely, order = torch.softmax(logits.double() / self._temperature, 0).sort(descending=True)
        reached = likely.cumsum(0)
        kept = int(torch.searchsorted(reached, self._top_p)) + 1  # the one that reaches top_p too
        total = reached[min(kept, len(reached)) - 1]
        return int(order[min(int(torch.searchsorted(reached, self._draw() * total)), len(order) - 1)])

    def _draw(self) -> torch.Tensor:
        return torch.rand(1, generator=self._generator, dtype=torch.float64)
