"""The index of a pool: a tree of blocks that finds the longest usable prefix. It holds no bytes.

The tree is prefix-closed: a block is there only below its parent. So a snapshot cannot outlive its
blocks, and a block found on the way down belongs to exactly the tokens walked so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from prfaas_lab.kvcache.blocks import Block, Prompt
from prfaas_lab.kvcache.journal import Journal


class Item:
    """One thing that takes up bytes: the KV of a block (`is_snapshot` False), or a state snapshot."""

    __slots__ = ("floor", "hits", "is_snapshot", "node", "pins", "serial", "size_bytes", "tier", "used")

    def __init__(self, node: Node, *, is_snapshot: bool, serial: int, size_bytes: int) -> None:
        self.node = node
        self.is_snapshot = is_snapshot
        self.serial = serial
        self.size_bytes = size_bytes
        self.tier = 0  # 0 memory, 1 the spill tier
        self.pins = 0
        self.used = 0  # the pool's tick at the last use
        self.hits = 0
        self.floor = 0.0  # the eviction queue's age at the last use


class Node:
    """A block in the tree, `depth` blocks from the start, and the snapshot at its end if there is one."""

    __slots__ = ("block", "children", "children_in_memory", "depth", "kv", "parent", "snapshot")

    kv: Item

    def __init__(self, block: Block, parent: Node | None) -> None:
        self.block = block
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[Block, Node] = {}
        self.children_in_memory = 0
        self.snapshot: Item | None = None

    def items(self) -> tuple[Item, ...]:
        return (self.kv,) if self.snapshot is None else (self.kv, self.snapshot)

    def covering_snapshot(self) -> Node | None:
        """The nearest ancestor with a snapshot: where a request resumes when this one's is gone."""
        node = self.parent
        while node is not None and node.snapshot is None:
            node = node.parent
        return node


class Index:
    """Find, add and remove blocks. Sizes come with the items; where they lie is the pool's matter."""

    def __init__(self, *, needs_snapshot: bool, journal: Journal) -> None:
        self._needs_snapshot = needs_snapshot
        self._journal = journal
        self._serials = count(1)
        self.root = Node(Block(b"", b""), None)
        self.nodes = 0
        self.snapshots = 0

    def walk(self, prompt: Prompt) -> list[Node]:
        """The prompt's blocks that are held, in order, usable or not."""
        path, node = [], self.root
        for block in prompt.blocks:
            child = node.children.get(block)
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def usable(self, path: list[Node], limit: int, *, tier: int = 1) -> int:
        """The longest boundary of `path`, in blocks and at most `limit`, that can be resumed from, with
        nothing from beyond `tier`."""
        for depth in range(min(len(path), limit), 0, -1):
            node = path[depth - 1]
            last = node.snapshot if self._needs_snapshot else node.kv
            if last is not None and max(last.tier, node.kv.tier) <= tier:
                return depth
        return 0

    def add_block(self, parent: Node, block: Block, size_bytes: int) -> Node:
        node = Node(block, parent)
        node.kv = Item(node, is_snapshot=False, serial=next(self._serials), size_bytes=size_bytes)
        parent.children[block] = node
        parent.children_in_memory += 1
        self.nodes += 1
        self._journal.note(node.block.key, is_snapshot=False, held=True)
        return node

    def add_snapshot(self, node: Node, size_bytes: int) -> Item:
        node.snapshot = Item(node, is_snapshot=True, serial=next(self._serials), size_bytes=size_bytes)
        self.snapshots += 1
        self._journal.note(node.block.key, is_snapshot=True, held=True)
        return node.snapshot

    def remove(self, item: Item) -> None:
        """Forget a snapshot, or a block that has neither children nor a snapshot left."""
        node = item.node
        self._journal.note(node.block.key, is_snapshot=item.is_snapshot, held=False)
        if item.is_snapshot:
            node.snapshot = None
            self.snapshots -= 1
            return
        assert not node.children, "the tree is closed under parents"
        assert node.snapshot is None
        assert node.parent is not None
        del node.parent.children[node.block]
        node.parent.children_in_memory -= item.tier == 0
        self.nodes -= 1

    def move(self, item: Item, tier: int) -> None:
        """Note that an item's bytes lie in another tier now."""
        if not item.is_snapshot and item.node.parent is not None:
            item.node.parent.children_in_memory += (tier == 0) - (item.tier == 0)
        item.tier = tier

    def __iter__(self) -> Iterator[Node]:
        """Every block, parents before children."""
        pending = list(self.root.children.values())
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())

    def serial(self) -> int:
        """A fresh number for something that takes bytes but is not in the tree."""
        return next(self._serials)
