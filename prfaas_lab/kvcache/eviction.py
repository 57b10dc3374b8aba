"""What goes first when a tier is full: a queue of candidates, and policies that rank them.

Whatever the policy, a block is a candidate only when nothing in its tier builds on it: no child and
no snapshot. So eviction never makes an unusable hole; policies differ in the order alone.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from prfaas_lab.kvcache.blocks import Geometry
from prfaas_lab.kvcache.index import Item

Rank = tuple[int, float]
Policy = Callable[[Item, Geometry], Rank]
"""The rank of a candidate; the lowest goes first."""

_TEMPER = 0.75
# Raising tokens / bytes to 3/4 favours long prompts a little less. Chosen on the first 6,000 requests of
# the Mooncake trace (1T model): share of prompt tokens hit with 50 / 200 / 400 GiB: LRU 0.071 / 0.225 /
# 0.292, the plain ratio 0.096 / 0.245 / 0.300, tempered 0.087 / 0.244 / 0.301. With bytes in plenty the
# plain ratio falls behind LRU (by 0.3 points at 800 GiB on the whole trace), the tempered one by 0.1
# (by 0.3 with Qwen3-Next's smaller state).


def least_recent(item: Item, _: Geometry) -> Rank:
    """LRU over blocks and snapshots alike: the baseline."""
    return 1, float(item.used)


def least_saving(item: Item, geometry: Geometry) -> Rank:
    """Cost-aware (greedy dual, size and frequency; Cherkasova 1998): age + uses x (tokens / bytes)^3/4.

    A block that is a candidate has no snapshot at or beyond it, so no request can resume from it: it
    goes first. A snapshot is worth the tokens that would have to be computed again from the nearest
    snapshot before it; its bytes are its own and those of the blocks that would become useless with
    it. Age is the rank that was last evicted: what is not used again sinks below what is.
    """
    if not item.is_snapshot:
        if geometry.snapshot_bytes:
            return 0, float(item.used)
        return 1, _rank(item, geometry.block_tokens, item.size_bytes)
    cover = item.node.covering_snapshot()
    blocks = item.node.depth - (0 if cover is None else cover.depth)
    freed_bytes = item.size_bytes + (0 if item.node.children else blocks * geometry.block_bytes)
    return 1, _rank(item, blocks * geometry.block_tokens, freed_bytes)


def _rank(item: Item, saved_tokens: int, freed_bytes: int) -> float:
    return item.floor + (1 + item.hits) * math.pow(saved_tokens / freed_bytes, _TEMPER)


EVICTION_POLICIES: dict[str, Policy] = {"cost": least_saving, "lru": least_recent}
DEFAULT_EVICTION = "cost"


class EvictionQueue:
    """The candidates of one tier, least rank first. `age` is the rank of the last one taken."""

    def __init__(self) -> None:
        self.age = 0.0
        self._heap: list[tuple[Rank, int, Item]] = []
        self._stamps: dict[int, int] = {}
        self._next_stamp = 0

    def __contains__(self, item: Item) -> bool:
        return item.serial in self._stamps

    def offer(self, item: Item, rank: Rank) -> None:
        """Make `item` a candidate, or change its rank."""
        self._next_stamp += 1
        self._stamps[item.serial] = self._next_stamp
        heapq.heappush(self._heap, (rank, self._next_stamp, item))
        if len(self._heap) > 2 * len(self._stamps) + 64:
            self._heap = [entry for entry in self._heap if self._stamps.get(entry[2].serial) == entry[1]]
            heapq.heapify(self._heap)

    def withdraw(self, item: Item) -> None:
        """No longer a candidate; nothing happens when it was none."""
        self._stamps.pop(item.serial, None)

    def take(self) -> tuple[Item, Rank] | None:
        """The candidate of least rank, no longer in the queue; None when there is none."""
        while self._heap:
            rank, stamp, item = heapq.heappop(self._heap)
            if self._stamps.get(item.serial) == stamp:
                del self._stamps[item.serial]
                return item, rank
        return None
