"""What of a prompt a pool takes in: as far as room can be made for it, and use be had of it."""

from __future__ import annotations

from collections.abc import Mapping

from prfaas_lab.kvcache.blocks import Geometry, Prompt
from prfaas_lab.kvcache.index import Index, Item, Node
from prfaas_lab.kvcache.space import MEMORY, Space
from prfaas_lab.kvcache.tiers import Payload


class Intake:
    """Nothing is evicted for blocks that no snapshot at or beyond them makes usable."""

    def __init__(self, geometry: Geometry, index: Index, space: Space) -> None:
        self._geometry, self._index, self._space = geometry, index, space

    def take(
        self,
        path: list[Node],
        prompt: Prompt,
        blocks: Mapping[int, Payload],
        snapshots: Mapping[int, Payload],
    ) -> tuple[list[Item], list[Item]]:
        """Add what can be afforded to a pinned path (in place): the new blocks and snapshots, pinned. Both
        are given as for `Pool.insert`."""
        width, held = self._geometry.block_tokens, len(path)
        reach = held
        while reach < len(prompt.blocks) and reach * width in blocks:
            reach += 1
        ends = sorted(
            t // width for t in snapshots if 0 < t <= reach * width and self._geometry.snapshot_bytes
        )
        # Settled before anything moves: one that is held now may have to make room, and is not missed.
        missing = [end for end in ends if end > held or path[end - 1].snapshot is None]
        goal = self._affordable(held, reach, ends, missing)
        added = self._extend(path, prompt, blocks, range(held, goal))
        taken = self._add_snapshots(path, {end: snapshots[end * width] for end in missing if end <= goal})
        room = self._space.free_bytes(MEMORY) // self._geometry.block_bytes
        added += self._extend(path, prompt, blocks, range(len(path), min(reach, len(path) + room)))
        return added, taken

    def _affordable(self, held: int, reach: int, ends: list[int], missing: list[int]) -> int:
        """The longest usable boundary, in blocks, for whose blocks and snapshots room can be made."""
        block, state = self._geometry.block_bytes, self._geometry.snapshot_bytes
        for goal in reversed(ends if state else range(held + 1, reach + 1)):
            if self._space.fits(max(0, goal - held) * block + sum(b <= goal for b in missing) * state):
                return goal
        return 0

    def _extend(
        self, path: list[Node], prompt: Prompt, blocks: Mapping[int, Payload], depths: range
    ) -> list[Item]:
        """Add blocks, pinned, to the end of `path` (in place). There must be room for them."""
        added = []
        for depth in depths:
            parent = path[-1] if path else self._index.root
            node = self._index.add_block(parent, prompt.blocks[depth], self._geometry.block_bytes)
            self._space.place(node.kv, blocks[depth * self._geometry.block_tokens])
            path.append(node)
            added.append(node.kv)
        return added

    def _add_snapshots(self, path: list[Node], states: Mapping[int, Payload]) -> list[Item]:
        """Add snapshots, pinned, at boundaries of `path` that have none. There must be room for them."""
        added = []
        for depth, state in states.items():
            item = self._index.add_snapshot(path[depth - 1], self._geometry.snapshot_bytes)
            self._space.place(item, state)
            added.append(item)
        return added
