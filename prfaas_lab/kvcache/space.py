"""The bytes of a pool: which tier an item lies in, what is pinned, and what makes room for what.

Two rules hold at every moment. The blocks in memory are closed under parents, so what lies on disk
hangs below what lies in memory. And everything in memory that is not pinned can be evicted, so room
for `n` bytes can be made exactly when pinned + n <= budget.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prfaas_lab.kvcache.blocks import CacheError, Geometry
from prfaas_lab.kvcache.eviction import EvictionQueue, Policy
from prfaas_lab.kvcache.index import Index, Item, Node
from prfaas_lab.kvcache.tiers import Payload, Tier
from prfaas_lab.units import format_size

MEMORY, DISK = 0, 1


@dataclass(slots=True)
class Departures:
    """Counters of what left, from memory to disk and for good, and of what came back."""

    spilled: int = 0
    reloaded: int = 0
    evicted_blocks: int = 0
    evicted_snapshots: int = 0
    damaged: int = 0


class Space:
    """One byte budget shared by blocks, snapshots and transfers, with an optional tier behind it."""

    def __init__(
        self, geometry: Geometry, index: Index, memory: Tier, disk: Tier | None, policy: Policy
    ) -> None:
        self._geometry, self._index, self._policy = geometry, index, policy
        self.tiers = (memory,) if disk is None else (memory, disk)
        self.queues = tuple(EvictionQueue() for _ in self.tiers)
        self.pinned_bytes = 0
        self.loose: dict[int, int] = {}  # serial -> bytes of transfers in transit
        self.loose_bytes = self.loose_peak_bytes = 0
        self.loose_made = self.loose_refused = 0
        self.gone = Departures()
        self._tick = 0

    # -- pins --

    def fits(self, new_bytes: int = 0) -> bool:
        """Whether room for `new_bytes` more can be made beside all that is pinned."""
        return self.pinned_bytes + new_bytes <= self.tiers[MEMORY].budget_bytes

    def free_bytes(self, tier: int) -> int:
        there = self.tiers[tier]
        return there.budget_bytes - there.used_bytes

    def pin(self, items: Iterable[Item]) -> None:
        for item in items:
            item.pins += 1
            if item.pins == 1:
                self.pinned_bytes += item.size_bytes
                self.queues[item.tier].withdraw(item)

    def unpin(self, items: Iterable[Item]) -> None:
        for item in items:
            assert item.pins > 0
            item.pins -= 1
            if item.pins == 0:
                self.pinned_bytes -= item.size_bytes
                self._reconsider(item)

    def use(self, items: Iterable[Item], *, hit: bool) -> None:
        """Note a use; all items of one call are equally recent."""
        self._tick += 1
        for item in items:
            item.used = self._tick
            item.floor = self.queues[item.tier].age
            item.hits += hit

    # -- bytes --

    def place(self, item: Item, payload: Payload) -> None:
        """Take in a new item, pinned. The caller has made sure that it fits."""
        self.pin((item,))  # first, lest making room should take it for a candidate
        self._make_room(item.size_bytes)
        self.tiers[MEMORY].put(item.serial, payload, item.size_bytes)
        if item.is_snapshot and (cover := item.node.covering_snapshot()) is not None:
            assert cover.snapshot is not None
            self._reconsider(cover.snapshot)  # continued now, so worth less

    def place_loose(self, serial: int, payload: Payload, size_bytes: int) -> None:
        """Take in bytes that belong to no block; they count as pinned until dropped. Raises CacheError when
        they do not fit beside what is pinned."""
        self._admit_loose(size_bytes)
        self._put_loose(serial, payload, size_bytes)
        self.loose_made += 1

    def grow_loose(self, serial: int, payload: Payload, more_bytes: int) -> None:
        """More of what was placed so. Raises CacheError when that does not fit: what was placed stays."""
        self._admit_loose(more_bytes)
        size_bytes = self.loose[serial] + more_bytes
        self.drop_loose(serial)
        self._put_loose(serial, payload, size_bytes)

    def _admit_loose(self, size_bytes: int) -> None:
        if not self.fits(size_bytes):
            self.loose_refused += 1
            raise CacheError(
                f"no room for a transfer of {format_size(size_bytes)}: "
                f"{format_size(self.pinned_bytes)} of the cache are pinned",
                remedy="raise the datacenter's cache, or let fewer requests prefill at once",
            )
        self._make_room(size_bytes)

    def _put_loose(self, serial: int, payload: Payload, size_bytes: int) -> None:
        self.tiers[MEMORY].put(serial, payload, size_bytes)
        self.loose[serial] = size_bytes
        self.loose_bytes += size_bytes
        self.loose_peak_bytes = max(self.loose_peak_bytes, self.loose_bytes)
        self.pinned_bytes += size_bytes

    def drop_loose(self, serial: int) -> None:
        self.tiers[MEMORY].drop(serial)
        size_bytes = self.loose.pop(serial)
        self.loose_bytes -= size_bytes
        self.pinned_bytes -= size_bytes

    def payload(self, item: Item) -> Payload:
        return self.tiers[item.tier].get(item.serial)

    def lift(self, items: Iterable[Item]) -> Item | None:
        """Bring pinned items into memory, parents first; answers one that cannot be read back."""
        for item in items:
            if item.tier == MEMORY:
                continue
            try:
                payload = self.tiers[DISK].get(item.serial)
            except CacheError:
                return item
            self._make_room(item.size_bytes)
            self.tiers[DISK].drop(item.serial)
            self.tiers[MEMORY].put(item.serial, payload, item.size_bytes)
            self._index.move(item, MEMORY)
            self.gone.reloaded += 1
        return None

    def drop_damaged(self, item: Item) -> None:
        """Forget an item that cannot be read, and all that builds on it."""
        self.gone.damaged += 1
        self._forget(item)

    # -- making room --

    def _make_room(self, size_bytes: int) -> None:
        while self.free_bytes(MEMORY) < size_bytes:
            victim = self._next_victim(MEMORY)
            assert victim is not None, "callers ask `fits` first"
            if not self._spill(victim):
                self._forget(victim)

    def _next_victim(self, tier: int) -> Item | None:
        queue = self.queues[tier]
        while (taken := queue.take()) is not None:
            item, rank = taken
            now = self._policy(item, self._geometry)
            if now <= rank:
                queue.age = max(queue.age, rank[1] if rank[0] else 0.0)
                return item
            queue.offer(item, now)  # it grew in worth, say because the snapshot before it went
        return None

    def _spill(self, item: Item) -> bool:
        """Move an item to disk, if there is a disk, it is worth it, and there is room."""
        node = item.node
        useful = item.is_snapshot or node.snapshot or node.children or not self._geometry.snapshot_bytes
        if len(self.tiers) == 1 or not useful or not self._make_room_on_disk(item.size_bytes):
            return False
        try:
            self.tiers[DISK].put(item.serial, self.payload(item), item.size_bytes)
        except CacheError:
            return False
        self.queues[MEMORY].withdraw(item)  # making room may have made it a candidate again
        self.tiers[MEMORY].drop(item.serial)
        self._index.move(item, DISK)
        item.floor = self.queues[DISK].age
        self.gone.spilled += 1
        self._reconsider_around(item)
        return True

    def _make_room_on_disk(self, size_bytes: int) -> bool:
        if size_bytes > self.tiers[DISK].budget_bytes:
            return False
        while self.free_bytes(DISK) < size_bytes:
            victim = self._next_victim(DISK)
            if victim is None:
                return False
            self._drop(victim)
        return True

    def _forget(self, item: Item) -> None:
        """Drop an item with all that is useless without it: for a block, everything below it."""
        if item.is_snapshot:
            self._drop(item)
            return
        if not item.node.children and item.node.snapshot is None:
            self._drop(item)
            return
        below = [item.node]
        for node in below:  # grows as it goes: a prompt may be thousands of blocks deep
            below.extend(node.children.values())
        for node in reversed(below):
            for each in reversed(node.items()):
                self._drop(each)

    def _drop(self, item: Item) -> None:
        assert item.pins == 0
        self.queues[item.tier].withdraw(item)
        self.tiers[item.tier].drop(item.serial)
        self._index.remove(item)
        if item.is_snapshot:
            self.gone.evicted_snapshots += 1
        else:
            self.gone.evicted_blocks += 1
        self._reconsider_around(item)

    # -- candidates --

    def _reconsider_around(self, item: Item) -> None:
        """An item has left its tier: others may be free to follow. A snapshot holds back its block alone."""
        node, above = item.node, item.node.parent
        if self._alive(node):
            for other in node.items():
                self._reconsider(other)
        if not item.is_snapshot and above is not None and above.parent is not None:
            for other in above.items():
                self._reconsider(other)

    @staticmethod
    def _alive(node: Node) -> bool:
        return node.parent is not None and node.parent.children.get(node.block) is node

    def _reconsider(self, item: Item) -> None:
        queue = self.queues[item.tier]
        if self.is_candidate(item):
            queue.offer(item, self._policy(item, self._geometry))
        elif item in queue:
            queue.withdraw(item)

    @staticmethod
    def is_candidate(item: Item) -> bool:
        """Whether an item may be evicted from its tier: unpinned, and nothing there builds on it."""
        if item.pins:
            return False
        if item.is_snapshot:
            return True
        node = item.node
        builds_on_it = node.children_in_memory if item.tier == MEMORY else node.children
        kept_here = node.snapshot is not None and node.snapshot.tier <= item.tier
        return not builds_on_it and not kept_here
