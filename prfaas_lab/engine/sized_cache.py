"""A simulated engine's prefix cache: the pool of `prefix_cache`, whose entries are sizes without bytes."""

from __future__ import annotations

from dataclasses import dataclass

from prfaas_lab.kvcache import Pool, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedCopy:
    """What a copy of a prefix brings: the blocks from `first_token` to `tokens`, the state at their end,
    and the bytes that cross."""

    first_token: int
    tokens: int
    has_state: bool
    size_bytes: int


class SizedCache:
    """Finds, keeps and hands on as `PrefixCache` does, and so evicts the same entries. Tokens are whole
    blocks; nothing is damaged here."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._width = pool.geometry.block_tokens

    def find(self, prompt: Prompt) -> int:
        """Tokens of the longest prefix that can be resumed from (of a pool without snapshots: that need
        not be received)."""
        with self.pool.acquire(prompt) as lease:
            return lease.tokens

    def snapshots_for(self, prompt: Prompt) -> tuple[int, ...]:
        """The boundaries, in tokens, whose state is worth keeping when `prompt` is prefilled."""
        return self.pool.wanted_snapshots(prompt)

    def keep(self, prompt: Prompt, cached_tokens: int, snapshots: tuple[int, ...]) -> None:
        """Take in what a prefill computed beyond `cached_tokens`."""
        self.pool.insert(prompt, self._blocks(prompt, cached_tokens), dict.fromkeys(snapshots))

    def keep_received(self, prompt: Prompt) -> None:
        """Take in the complete blocks of a cache that was received."""
        self.keep(prompt, self.known_tokens(prompt), ())

    def known_tokens(self, prompt: Prompt) -> int:
        """Tokens whose blocks are held, with a snapshot or without."""
        return self.pool.match(prompt).known_tokens

    def copy_beyond(self, prompt: Prompt, held_tokens: int) -> SizedCopy | None:
        """What another cache, which has the blocks of `held_tokens`, lacks of this one; None for nothing."""
        geometry = self.pool.geometry
        tokens = self.find(prompt)
        has_state = tokens > 0 and geometry.snapshot_bytes > 0
        blocks = max(0, tokens - held_tokens) // self._width
        if not blocks and not has_state:
            return None
        return SizedCopy(
            first_token=min(held_tokens, tokens),
            tokens=tokens,
            has_state=has_state,
            size_bytes=blocks * geometry.block_bytes + geometry.snapshot_bytes * has_state,
        )

    def adopt(self, prompt: Prompt, copy: SizedCopy) -> int:
        """Take in a copy from another cache; how many tokens can be resumed from now."""
        blocks = dict.fromkeys(range(copy.first_token, copy.tokens, self._width))
        states = {copy.tokens: None} if copy.has_state else {}
        return self.pool.insert(prompt, blocks, states).usable_tokens

    def _blocks(self, prompt: Prompt, first_token: int) -> dict[int, None]:
        return dict.fromkeys(range(first_token, len(prompt.blocks) * self._width, self._width))
