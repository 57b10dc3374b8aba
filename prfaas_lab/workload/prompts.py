"""What prompts say: random token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

RESERVED_IDS = 8
"""The lowest ids of a vocabulary are kept out of prompts: padding, begin and end of text live there."""


def random_prompt(tokens: int, vocab_size: int, rng: np.random.Generator) -> tuple[int, ...]:
    """So many ordinary token ids, each alike likely: no two prompts share a prefix worth caching."""
    assert vocab_size > RESERVED_IDS, f"a vocabulary of {vocab_size} has no ordinary ids"
    return tuple(rng.integers(RESERVED_IDS, vocab_size, size=tokens).tolist())
