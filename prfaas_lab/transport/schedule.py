"""Which transfer the next bytes come from, when several share the way to one peer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """A transfer with bytes ready to go."""

    @property
    def order(self) -> int:
        """Position in the order of opening."""

    @property
    def remaining_bytes(self) -> int:
        """What it still has to send, as far as is known."""

    @property
    def served(self) -> float:
        """Bytes sent so far per unit of weight (a newcomer starts level with the least served)."""


C = TypeVar("C", bound="Candidate")

Policy = Callable[[Candidate], tuple[float, int]]
"""The rank of a candidate: the smallest goes next. Ties go to the one opened first."""


def fifo(candidate: Candidate) -> tuple[float, int]:
    """First opened, first sent: the least time to the first finished transfer."""
    return 0.0, candidate.order


def shortest(candidate: Candidate) -> tuple[float, int]:
    """Least left to send: the least mean waiting, at the cost of the long ones."""
    return float(candidate.remaining_bytes), candidate.order


def weighted(candidate: Candidate) -> tuple[float, int]:
    """Shares in proportion to the weights."""
    return candidate.served, candidate.order


POLICIES: dict[str, Policy] = {"fifo": fifo, "shortest": shortest, "weighted": weighted}


def choose(policy: Policy, candidates: Iterable[C]) -> C | None:
    """The candidate that goes next, None when there is none."""
    return min(candidates, key=policy, default=None)
