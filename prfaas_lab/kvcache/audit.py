"""The conservation check of a pool: what must be true between any two calls."""

from __future__ import annotations

from prfaas_lab.kvcache.index import Index, Item
from prfaas_lab.kvcache.space import DISK, MEMORY, Space


def audit(index: Index, space: Space) -> None:
    """Assert conservation: free + held == budget in each tier, every held byte has one owner, pins are
    what pinned_bytes says and lie in memory, memory is closed under parents, candidates are right."""
    nodes = list(index)
    items = [item for node in nodes for item in node.items()]
    assert len(nodes) == index.nodes
    assert sum(item.is_snapshot for item in items) == index.snapshots
    assert len({item.serial for item in items}) == len(items)
    for number, tier in enumerate(space.tiers):
        owned = sum(item.size_bytes for item in items if item.tier == number)
        owned += sum(space.loose.values()) if number == MEMORY else 0
        assert owned == tier.used_bytes
        assert space.free_bytes(number) >= 0
    assert sum(space.loose.values()) == space.loose_bytes <= space.loose_peak_bytes
    pinned = sum(item.size_bytes for item in items if item.pins) + sum(space.loose.values())
    assert pinned == space.pinned_bytes <= space.tiers[MEMORY].budget_bytes
    for item in items:
        _audit_item(item, space)
    for node in [index.root, *nodes]:
        in_memory = sum(child.kv.tier == MEMORY for child in node.children.values())
        assert node.children_in_memory == in_memory


def _audit_item(item: Item, space: Space) -> None:
    node, parent = item.node, item.node.parent
    assert parent is not None
    assert parent.children[node.block] is node
    assert item.pins == 0 or item.tier == MEMORY, "what is leased lies in memory"
    below = parent.kv.tier if parent.parent is not None else MEMORY
    assert item.tier >= (node.kv.tier if item.is_snapshot else below), "memory is closed under parents"
    assert (item in space.queues[item.tier]) == space.is_candidate(item)
    if item.tier == DISK:
        assert item not in space.queues[MEMORY]
