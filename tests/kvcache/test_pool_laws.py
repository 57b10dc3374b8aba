"""Any interleaving of insert, match, pin, evict, spill and damage keeps every law of the pool."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kvcache_prompts import WIDTH, assert_serves, named, prefilled, states

from prfaas_lab.kvcache.blocks import CacheError, Geometry
from prfaas_lab.kvcache.directory import Directory, Holder
from prfaas_lab.kvcache.eviction import EVICTION_POLICIES
from prfaas_lab.kvcache.lease import Lease, Transfer
from prfaas_lab.kvcache.pool import Pool
from prfaas_lab.kvcache.snapshots import SNAPSHOT_POLICIES
from prfaas_lab.kvcache.tiers import DirectoryTier, MemoryTier, Tier

# Two tokens and short prompts, so that prefixes are shared and branches met all the time.
prompts = st.lists(st.integers(0, 1), max_size=13)
HOME = Holder("home")


class PoolMachine(RuleBasedStateMachine):
    """The pool against prompts whose payloads spell the tokens they were computed from."""

    leases: list[tuple[Lease, list[int]]]
    awaiting: list[tuple[Lease, list[int]]]
    transfers: list[Transfer]

    @initialize(
        eviction=st.sampled_from(sorted(EVICTION_POLICIES)),
        snapshots=st.sampled_from(sorted(SNAPSHOT_POLICIES)),
        state_bytes=st.sampled_from([0, 7, 30]),
        budget_bytes=st.integers(0, 200),
        spill=st.sampled_from(["none", "memory", "directory"]),
        spill_bytes=st.integers(0, 150),
        weak=st.booleans(),
    )
    def start(
        self,
        eviction: str,
        snapshots: str,
        state_bytes: int,
        budget_bytes: int,
        spill: str,
        spill_bytes: int,
        weak: bool,
    ) -> None:
        self.weak, self.leases, self.awaiting, self.transfers = weak, [], [], []
        self.folder = tempfile.TemporaryDirectory() if spill == "directory" else None
        self.geometry = Geometry(block_tokens=WIDTH, block_bytes=10, snapshot_bytes=state_bytes)
        self.pool = Pool(
            self.geometry,
            budget_bytes,
            spill=self._tier(spill, spill_bytes),
            eviction=eviction,
            snapshots=snapshots,
            snapshot_every_tokens=2 * WIDTH,
        )
        self.directory = Directory(self.geometry)

    def _tier(self, spill: str, size_bytes: int) -> Tier | None:
        if spill == "memory":
            return MemoryTier(size_bytes)
        return DirectoryTier(Path(self.folder.name), size_bytes) if self.folder else None

    @rule(tokens=prompts)
    def serve(self, tokens: list[int]) -> None:
        """A whole prefill: acquire, compute the rest, insert what the policy wants, release."""
        prompt = named(tokens, weak=self.weak)
        with self.pool.acquire(prompt) as lease:
            assert_serves(lease, tokens, stateful=self.geometry.snapshot_bytes > 0)
            wanted = self.pool.wanted_snapshots(prompt)
            assert all(lease.tokens < end < max(1, len(tokens)) for end in wanted)
            fresh = {start: kv for start, kv in prefilled(tokens).items() if start >= lease.tokens}
            inserted = self.pool.insert(prompt, fresh, states(tokens, *wanted))
            assert inserted.usable_tokens >= lease.tokens

    @rule(tokens=prompts, ends=st.sets(st.integers(1, 6)))
    def insert(self, tokens: list[int], ends: set[int]) -> None:
        """Blocks with snapshots anywhere or nowhere."""
        complete = [end * WIDTH for end in ends if end * WIDTH <= len(tokens)]
        self.pool.insert(named(tokens, weak=self.weak), prefilled(tokens), states(tokens, *complete))

    @rule(tokens=prompts)
    def match(self, tokens: list[int]) -> None:
        before = self.pool.stats()
        match = self.pool.match(named(tokens, weak=self.weak))
        assert match.tokens <= match.known_tokens <= len(tokens)
        assert self.pool.stats() == before, "matching changes nothing"

    @rule(tokens=prompts)
    def pin(self, tokens: list[int]) -> None:
        lease = self.pool.acquire(named(tokens, weak=self.weak))
        assert_serves(lease, tokens, stateful=self.geometry.snapshot_bytes > 0)
        self.leases.append((lease, tokens))

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 10**6))
    def unpin(self, which: int) -> None:
        lease, tokens = self.leases.pop(which % len(self.leases))
        # Whatever happened meanwhile: what is pinned is still there, and found.
        assert self.pool.match(named(tokens, weak=self.weak)).tokens >= lease.tokens
        lease.release()

    @rule(size_bytes=st.integers(0, 80))
    def send(self, size_bytes: int) -> None:
        room = size_bytes + self.pool.stats().pinned_bytes <= self.pool.budget_bytes
        try:
            self.transfers.append(self.pool.stage(b"tail", size_bytes))
        except CacheError:
            assert not room
        else:
            assert room

    @precondition(lambda self: self.transfers)
    @rule(more_bytes=st.integers(0, 80))
    def send_more(self, more_bytes: int) -> None:
        transfer = self.transfers[-1]
        room = more_bytes + self.pool.stats().pinned_bytes <= self.pool.budget_bytes
        before = transfer.size_bytes
        try:
            transfer.grow(more_bytes)
        except CacheError:
            assert not room
        assert transfer.size_bytes == before + more_bytes * room

    @rule(tokens=prompts)
    def await_more(self, tokens: list[int]) -> None:
        """A copy that goes on from what is held: it stays, whether it can be resumed from or not."""
        prompt = named(tokens, weak=self.weak)
        lease = self.pool.retain(prompt)
        assert list(lease.blocks) == list(prefilled(tokens[: lease.tokens]).values())
        assert lease.tokens <= self.pool.match(prompt).known_tokens
        self.awaiting.append((lease, tokens))

    @precondition(lambda self: self.awaiting)
    @rule()
    def arrive(self) -> None:
        lease, tokens = self.awaiting.pop()
        assert self.pool.match(named(tokens, weak=self.weak)).known_tokens >= lease.tokens
        lease.release()

    @rule(tokens=prompts, first=st.integers(0, 5), snapshot=st.booleans())
    def find_damage(self, tokens: list[int], first: int, snapshot: bool) -> None:
        """In memory. What somebody has leased stays: `unpin` and `arrive` see to that."""
        self.pool.discard(named(tokens, weak=self.weak), first * WIDTH, snapshot=snapshot)

    @precondition(lambda self: self.transfers)
    @rule()
    def hand_over(self) -> None:
        self.transfers.pop().release()

    @precondition(lambda self: self.folder)
    @rule(which=st.integers(0, 10**6))
    def damage(self, which: int) -> None:
        files = sorted(Path(self.folder.name).iterdir())
        if files:
            victim = files[which % len(files)]
            victim.write_bytes(victim.read_bytes()[:-1] + b"?")

    @rule(lost=st.booleans())
    def report(self, lost: bool) -> None:
        """The directory knows exactly what the pool holds, whether or not a delta was lost."""
        delta = self.pool.changes()
        if lost or not self.directory.apply(HOME, delta):
            assert self.directory.apply(HOME, self.pool.listing())
        for tokens in ([0] * 9, [0, 1] * 4, [1] * 13):
            prompt = named(tokens)
            if not self.weak:
                assert self.directory.match(prompt)["home"] == self.pool.match(prompt).tokens

    @invariant()
    def bytes_are_conserved(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check()

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for held in [lease for lease, _ in self.leases + self.awaiting] + self.transfers:
            held.release()
        assert self.pool.stats().pinned_bytes == 0
        self.pool.check()
        self.pool.close()
        if self.folder:
            assert not list(Path(self.folder.name).iterdir()), "close removes what was spilled"
            self.folder.cleanup()


TestPoolLaws = PoolMachine.TestCase
TestPoolLaws.settings = settings(max_examples=100, stateful_step_count=40, report_multiple_bugs=False)
