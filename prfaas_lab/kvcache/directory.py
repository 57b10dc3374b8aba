"""The metadata of the global KVCache manager (the paper, 3.2): who holds what, as far as is known.

Pools report changes (`Delta`); the directory answers, on a request's arrival, how much of its prompt
each datacenter and engine holds. Its entries are hints. An entry may be stale, for its pool evicted
meanwhile, or missing, for the news is on its way: the pool that a request is sent to decides by its
own index what is reused, so a stale hint costs a recomputation and never a wrong token.
"""

from __future__ import annotations

from typing import NamedTuple

from prfaas_lab.kvcache.blocks import Block, Geometry, Prompt
from prfaas_lab.kvcache.journal import Delta


class Holder(NamedTuple):
    """Where a pool is: a datacenter, and an engine where each engine has its own ("" otherwise)."""

    datacenter: str
    engine: str = ""


class _Known:
    """What is believed of one pool."""

    __slots__ = ("blocks", "epoch", "snapshots", "version")

    def __init__(self, epoch: int) -> None:
        self.epoch, self.version = epoch, 0
        self.blocks: set[bytes] = set()
        self.snapshots: set[bytes] = set()


class Directory:
    """One per deployment. It is as large as the pools it describes: they are bounded, so it is."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self._known: dict[Holder, _Known] = {}

    # -- what is known --

    @property
    def holders(self) -> tuple[Holder, ...]:
        return tuple(self._known)

    def match(self, prompt: Prompt) -> dict[str, int]:
        """Prompt tokens that each datacenter can resume from: the best of its holders."""
        best: dict[str, int] = {}
        for holder, tokens in self.match_holders(prompt).items():
            best[holder.datacenter] = max(tokens, best.get(holder.datacenter, 0))
        return best

    def match_holders(self, prompt: Prompt) -> dict[Holder, int]:
        """Prompt tokens that each holder can resume from; every holder is named, with 0 for nothing."""
        limit = prompt.reusable_blocks
        return {
            holder: self._usable(known, prompt.blocks[:limit]) * self.geometry.block_tokens
            for holder, known in self._known.items()
        }

    def usable_tokens(self, prompt: Prompt, holder: Holder) -> int:
        """Prompt tokens that a holder can resume from."""
        known = self._known.get(holder)
        depth = self._usable(known, prompt.blocks[: prompt.reusable_blocks]) if known else 0
        return depth * self.geometry.block_tokens

    def held_tokens(self, prompt: Prompt, holder: Holder) -> int:
        """Prompt tokens whose blocks a holder has, with or without a snapshot: what need not cross
        again when the prefix is transferred there (the snapshot always must)."""
        known = self._known.get(holder)
        depth = 0 if known is None else self._contiguous(known, prompt.blocks)
        return depth * self.geometry.block_tokens

    def boundaries(self, prompt: Prompt) -> tuple[int, ...]:
        """Every length, in tokens, at which someone can resume this prompt, shortest first."""
        blocks, found = prompt.blocks[: prompt.reusable_blocks], set()
        for known in self._known.values():
            for depth in range(1, self._contiguous(known, blocks) + 1):
                if not self.geometry.snapshot_bytes or blocks[depth - 1].key in known.snapshots:
                    found.add(depth * self.geometry.block_tokens)
        return tuple(sorted(found))

    def believes(self, holder: Holder, key: bytes, *, snapshot: bool = False) -> bool:
        """Whether a holder is thought to have a block, or the snapshot at its end."""
        known = self._known.get(holder)
        return known is not None and key in (known.snapshots if snapshot else known.blocks)

    # -- learning --

    def apply(self, holder: Holder, delta: Delta) -> bool:
        """Take in a pool's news. False when something before it is missing (a delta was lost, or the
        pool began a new life): nothing is changed then, and the pool's `listing()` is due."""
        known = self._known.get(holder)
        if known is not None and (delta.epoch, delta.version) <= (known.epoch, known.version):
            return True  # repeated, or late: what is known is newer
        if delta.full or delta.version == 1:  # a pool begins empty, so its first delta tells all
            known = self._known[holder] = _Known(delta.epoch)
        elif known is None or (delta.epoch, delta.version - 1) != (known.epoch, known.version):
            return False
        known.version = delta.version
        known.blocks.update(delta.blocks_added)
        known.blocks.difference_update(delta.blocks_dropped)
        known.snapshots.update(delta.snapshots_added)
        known.snapshots.difference_update(delta.snapshots_dropped)
        return True

    def correct(self, holder: Holder, prompt: Prompt, found_tokens: int) -> None:
        """A request was sent to `holder` and only `found_tokens` could be resumed from: forget the
        hints that said more, so that the next one is not misled too."""
        known = self._known.get(holder)
        if known is None:
            return
        stale = prompt.blocks[found_tokens // self.geometry.block_tokens : prompt.reusable_blocks]
        forgotten = known.snapshots if self.geometry.snapshot_bytes else known.blocks
        forgotten.difference_update(block.key for block in stale)

    def forget(self, holder: Holder) -> None:
        """A holder is gone, and what it held with it."""
        self._known.pop(holder, None)

    # -- helpers --

    def _usable(self, known: _Known, blocks: tuple[Block, ...]) -> int:
        depth = self._contiguous(known, blocks)
        if not self.geometry.snapshot_bytes:
            return depth
        while depth and blocks[depth - 1].key not in known.snapshots:
            depth -= 1
        return depth

    @staticmethod
    def _contiguous(known: _Known, blocks: tuple[Block, ...]) -> int:
        for depth, block in enumerate(blocks):
            if block.key not in known.blocks:
                return depth
        return len(blocks)
