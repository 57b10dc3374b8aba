"""What a pool answers: frozen values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How far a prompt is held: `tokens` can be resumed from, `known_tokens` have their blocks."""

    tokens: int
    known_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inserted:
    """What an insertion added, and up to which boundary the prompt is usable now."""

    blocks: int
    snapshots: int
    usable_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """A pool's contents now (first group) and its counters since it was made."""

    blocks: int
    snapshots: int
    transfers: int
    memory_bytes: int
    disk_bytes: int
    pinned_bytes: int

    lookups: int
    hits: int
    prompt_tokens: int
    hit_tokens: int
    disk_hit_tokens: int
    """Of these, beyond what memory alone could have resumed from."""
    snapshots_made: int
    snapshots_reused: int
    evicted_blocks: int
    evicted_snapshots: int
    spilled: int
    reloaded: int
    damaged: int
    transfers_made: int
    transfers_refused: int
    """For want of room beside what was pinned."""
    transfer_peak_bytes: int

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that need not be computed."""
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def snapshot_efficiency(self) -> float:
        """Share of the snapshots made that were ever resumed from."""
        return self.snapshots_reused / self.snapshots_made if self.snapshots_made else 0.0
