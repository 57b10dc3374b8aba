"""The hybrid prefix cache pool of one datacenter (the paper, 3.2).

Full-attention KV is kept in token blocks that any prompt with the same beginning can use; the fixed
state of linear and sliding layers in snapshots, usable at exactly the length they were taken. A hit
is the longest boundary for which all blocks *and* the snapshot are held. Both, and the tails in
transit to a decode engine, draw on one byte budget.

    lease = pool.acquire(prompt)                  # pins what the hit needs
    wanted = pool.wanted_snapshots(prompt)        # where to export the state on the way
    ...prefill from lease.tokens on...
    pool.insert(prompt, blocks, snapshots)        # what was computed, by token boundary
    lease.release()

The pool belongs to one thread. It does no waiting and reads no clock; with a `DirectoryTier`, a call
may block for the files it moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from prfaas_lab.kvcache.audit import audit
from prfaas_lab.kvcache.blocks import CacheError, Geometry, Prompt
from prfaas_lab.kvcache.eviction import DEFAULT_EVICTION, EVICTION_POLICIES
from prfaas_lab.kvcache.index import Index, Item, Node
from prfaas_lab.kvcache.intake import Intake
from prfaas_lab.kvcache.journal import Delta, Journal
from prfaas_lab.kvcache.lease import Lease, Transfer
from prfaas_lab.kvcache.snapshots import DEFAULT_SNAPSHOTS, SNAPSHOT_POLICIES, Progress
from prfaas_lab.kvcache.space import DISK, MEMORY, Space
from prfaas_lab.kvcache.tiers import MemoryTier, Payload, Tier
from prfaas_lab.kvcache.values import Inserted, Match, PoolStats


class Pool:
    """See the module. `spill` is a second tier for what memory cannot keep; `epoch` must grow
    from one life of a pool to the next; `journal_limit` bounds the changes kept for the directory."""

    def __init__(
        self,
        geometry: Geometry,
        budget_bytes: int,
        *,
        spill: Tier | None = None,
        eviction: str = DEFAULT_EVICTION,
        snapshots: str = DEFAULT_SNAPSHOTS,
        snapshot_every_tokens: int | None = None,
        epoch: int = 0,
        journal_limit: int = 65536,
    ) -> None:
        self.geometry, self.budget_bytes = geometry, budget_bytes
        self._journal = Journal(epoch=epoch, limit=journal_limit)
        self._index = Index(needs_snapshot=geometry.snapshot_bytes > 0, journal=self._journal)
        policy = _choose(EVICTION_POLICIES, eviction, "eviction policy")
        self._space = Space(geometry, self._index, MemoryTier(budget_bytes), spill, policy)
        self._intake = Intake(geometry, self._index, self._space)
        self._snapshot_policy = _choose(SNAPSHOT_POLICIES, snapshots, "snapshot policy")
        self._every = max(1, (snapshot_every_tokens or 4 * geometry.block_tokens) // geometry.block_tokens)
        self._counts: Counter[str] = Counter()

    # -- reading --

    def match(self, prompt: Prompt) -> Match:
        """How far `prompt` is held. Changes nothing."""
        path = self._walk(prompt)
        usable = self._index.usable(path, prompt.reusable_blocks)
        width = self.geometry.block_tokens
        return Match(tokens=usable * width, known_tokens=len(path) * width)

    def wanted_snapshots(self, prompt: Prompt) -> tuple[int, ...]:
        """The boundaries, in tokens, whose state a prefill of `prompt` should export for `insert`."""
        if not self.geometry.snapshot_bytes:
            return ()
        path, end = self._walk(prompt), prompt.reusable_blocks
        hit = self._index.usable(path, end)
        progress = Progress(hit=hit, known=len(path), end=end, every=self._every)
        chosen = self._snapshot_policy(progress)
        return tuple(b * self.geometry.block_tokens for b in sorted(chosen) if hit < b <= end)

    def on_disk(self, prompt: Prompt, *, to_insert: bool = False) -> tuple[int, ...]:
        """What `acquire`, or `insert`, would have to read back: keys of the second tier. Changes nothing."""
        path = self._walk(prompt)
        items = self._needed(path[: self._index.usable(path, prompt.reusable_blocks)])
        if to_insert:
            items = tuple(node.kv for node in path)
        return tuple(item.serial for item in items if item.tier == DISK)

    def acquire(self, prompt: Prompt) -> Lease:
        """Pin the longest usable prefix of `prompt` and bring it into memory.

        A file that reads back damaged is forgotten, and a prefix too large to bring in beside what is
        pinned is passed over: the answer is then a shorter prefix, never a wrong one.
        """
        limit = prompt.reusable_blocks
        while depth := self._index.usable(path := self._walk(prompt), limit):
            items = self._needed(path[:depth])
            without_disk = self._index.usable(path, depth, tier=MEMORY)
            if self._hold(items):
                self._counts["disk_hit_tokens"] += (depth - without_disk) * self.geometry.block_tokens
                break
            limit = depth - 1
        else:
            items = ()
        self._count(prompt, items, depth * self.geometry.block_tokens)
        self._space.use(items, hit=True)
        return Lease(self._space, depth * self.geometry.block_tokens, items)

    def retain(self, prompt: Prompt) -> Lease:
        """Pin the blocks that are held of `prompt`, usable or not, and bring them into memory: for what is
        on its way here, and continues them. Fewer where that cannot be done."""
        limit = len(prompt.blocks)
        while path := self._walk(prompt)[:limit]:
            if self._hold(items := tuple(node.kv for node in path)):
                return Lease(self._space, len(path) * self.geometry.block_tokens, items)
            limit = len(path) - 1
        return Lease(self._space, 0, ())

    # -- writing --

    def insert(
        self, prompt: Prompt, blocks: Mapping[int, Payload], snapshots: Mapping[int, Payload]
    ) -> Inserted:
        """Keep what a prefill computed: the KV of blocks by the token at which each starts, states by
        the number of tokens they stand for. What is already held is left as it is.

        Nothing is evicted for blocks that no snapshot at or beyond them makes usable: such a tail is
        kept only in room that is free. What does not fit beside the pinned bytes is left out.
        """
        width = self.geometry.block_tokens
        assert all(tokens % width == 0 for tokens in (*blocks, *snapshots)), "off the block boundary"
        path = self._walk(prompt)
        held = tuple(node.kv for node in path)
        if not self._hold(held):
            return Inserted(blocks=0, snapshots=0, usable_tokens=self.match(prompt).tokens)
        added, taken = self._intake.take(path, prompt, blocks, snapshots)
        self._counts["snapshots_made"] += len(taken)
        items = (*held, *added, *taken)
        self._space.use(items, hit=False)
        self._space.unpin(reversed(items))
        usable = self._index.usable(path, prompt.reusable_blocks) * width
        return Inserted(blocks=len(added), snapshots=len(taken), usable_tokens=usable)

    def discard(self, prompt: Prompt, first_token: int, *, snapshot: bool) -> None:
        """Forget the block that begins at `first_token`, whose bytes are not what was put in, with all
        that builds on it; or only the snapshot at its end. What somebody has leased stays."""
        path = self._walk(prompt)
        depth = first_token // self.geometry.block_tokens
        item = (path[depth].snapshot if snapshot else path[depth].kv) if depth < len(path) else None
        if item is not None and not item.pins:  # a lease pins a whole path, so nothing below is leased
            self._space.drop_damaged(item)

    def stage(self, payload: Payload, size_bytes: int) -> Transfer:
        """Take the bytes of a transfer in transit onto the budget.

        Raises CacheError when they do not fit beside what is pinned: send them without, or wait.
        """
        serial = self._index.serial()
        self._space.place_loose(serial, payload, size_bytes)
        return Transfer(self._space, serial, payload, size_bytes)

    def close(self) -> None:
        """Give back the tiers' memory and files."""
        for tier in self._space.tiers:
            tier.close()

    # -- telling --

    def changes(self) -> Delta:
        """What was added and dropped since the last call, for the directory."""
        return self.listing() if self._journal.overflowed else self._journal.drain()

    def listing(self) -> Delta:
        """All that is held, for a directory that missed a change."""
        nodes = list(self._index)
        states = [node.block.key for node in nodes if node.snapshot is not None]
        return self._journal.restart([node.block.key for node in nodes], states)

    def stats(self) -> PoolStats:
        gone, tiers = self._space.gone, self._space.tiers
        return PoolStats(
            blocks=self._index.nodes,
            snapshots=self._index.snapshots,
            memory_bytes=tiers[MEMORY].used_bytes,
            disk_bytes=tiers[DISK].used_bytes if len(tiers) > 1 else 0,
            pinned_bytes=self._space.pinned_bytes,
            transfers=len(self._space.loose),
            transfers_made=self._space.loose_made,
            transfers_refused=self._space.loose_refused,
            transfer_peak_bytes=self._space.loose_peak_bytes,
            lookups=self._counts["lookups"],
            hits=self._counts["hits"],
            prompt_tokens=self._counts["prompt_tokens"],
            hit_tokens=self._counts["hit_tokens"],
            disk_hit_tokens=self._counts["disk_hit_tokens"],
            snapshots_made=self._counts["snapshots_made"],
            snapshots_reused=self._counts["snapshots_reused"],
            evicted_blocks=gone.evicted_blocks,
            evicted_snapshots=gone.evicted_snapshots,
            spilled=gone.spilled,
            reloaded=gone.reloaded,
            damaged=gone.damaged,
        )

    def check(self) -> None:
        """Assert that every byte, pin and candidate is accounted for: for tests and debug runs."""
        audit(self._index, self._space)

    # -- helpers --

    def _walk(self, prompt: Prompt) -> list[Node]:
        assert prompt.block_tokens == self.geometry.block_tokens, "hashed for another block size"
        return self._index.walk(prompt)

    @staticmethod
    def _needed(path: list[Node]) -> tuple[Item, ...]:
        """What must lie in memory to resume at the end of `path`."""
        snapshot = path[-1].snapshot if path else None
        blocks = tuple(node.kv for node in path)
        return blocks if snapshot is None else (*blocks, snapshot)

    def _hold(self, items: tuple[Item, ...]) -> bool:
        """Pin items in memory, or leave them unpinned where one cannot be brought there."""
        self._space.pin(items)
        damaged = self._space.lift(items) if self._space.fits() else None
        if self._space.fits() and damaged is None:
            return True
        self._space.unpin(reversed(items))
        if damaged is not None:
            self._space.drop_damaged(damaged)
        return False

    def _count(self, prompt: Prompt, items: tuple[Item, ...], hit_tokens: int) -> None:
        self._counts["lookups"] += 1
        self._counts["hits"] += hit_tokens > 0
        self._counts["prompt_tokens"] += prompt.tokens
        self._counts["hit_tokens"] += hit_tokens
        self._counts["snapshots_reused"] += bool(items) and items[-1].is_snapshot and not items[-1].hits


Choice = TypeVar("Choice")


def _choose(choices: dict[str, Choice], name: str, what: str) -> Choice:
    if name not in choices:
        raise CacheError(f"there is no {what} {name!r}", remedy=f"choose one of {', '.join(choices)}")
    return choices[name]
