"""At which boundaries a prefill should export its state: a choice from name to function.

A snapshot weighs as much as many blocks (20 blocks of 512 tokens in the paper's 1T model), so one at
each block would push out most of what it makes usable. The default is measured: on the Mooncake trace
with that model and 100 / 400 / 1600 GiB, `branch` hits 17.2 / 31.1 / 35.6 % of the prompt tokens, `every`
fourth block 3 / 19 / 29 % with six times the snapshots; even with room for everything, where snapshots
cost nothing, they find only a point more (`every+end` 37.0 %, `branch` 35.9 %).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What is known of a prompt before it is prefilled, in blocks: `hit` can be resumed from, `known`
    are held (at least `hit`: beyond it without a snapshot), `end` is the last boundary that a repeat
    or continuation of the prompt can use. `every` is the spacing for those who want one."""

    hit: int
    known: int
    end: int
    every: int


SnapshotPolicy = Callable[[Progress], frozenset[int]]
"""Boundaries wanted, in blocks; those at or before the hit are not computed again and fall away."""


def at_end(progress: Progress) -> frozenset[int]:
    """One snapshot a prompt, where its next turn continues."""
    return frozenset({progress.end})


def at_branches(progress: Progress) -> frozenset[int]:
    """The end, and where this prompt leaves what is held: a second prompt left the first here, so a
    third probably will (system prompts, documents, agent trees)."""
    return frozenset({progress.known, progress.end})


def at_every(progress: Progress) -> frozenset[int]:
    """Each `every`-th boundary, whatever the prompts share."""
    return frozenset(range(progress.every, progress.end + 1, progress.every))


def at_every_and_end(progress: Progress) -> frozenset[int]:
    """Each `every`-th boundary and the end."""
    return at_every(progress) | at_end(progress)


SNAPSHOT_POLICIES: dict[str, SnapshotPolicy] = {
    "branch": at_branches,
    "end": at_end,
    "every": at_every,
    "every+end": at_every_and_end,
}
DEFAULT_SNAPSHOTS = "branch"
