"""A simulated engine's prefix cache: the pool of `prefix_cache`, whose entries are sizes without bytes."""

from __future__ import annotations

from dataclasses import dataclass

from prfaas_lab.errors import EngineError
from prfaas_lab.kvcache import CacheError, Lease, Pool, Prompt, Transfer

_DECODED = True
"""The payload of a block that a decode engine completed; of any other it is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedCopy:
    """What a copy of a prefix brings: the blocks from `first_token` to `tokens`, the state at their end,
    and the bytes that cross. The `lease` of what is copied is to be released when it is there."""

    first_token: int
    tokens: int
    has_state: bool
    size_bytes: int
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedAnswer:
    """What decoding computed from `first_token` to `tokens`, with the state there; on the pool's budget
    until it is handed over."""

    first_token: int
    tokens: int
    transit: Transfer


class SizedCache:
    """Finds, keeps and hands on as `PrefixCache` does, and so evicts the same entries. Tokens are whole
    blocks; nothing is damaged here."""

    def __init__(self, pool: Pool, *, state_bytes: int) -> None:
        """`state_bytes` of the model, also where the pool keeps no snapshots."""
        self.pool, self._state_bytes = pool, state_bytes
        self._width = pool.geometry.block_tokens

    def find(self, prompt: Prompt) -> tuple[int, int]:
        """Tokens of the longest prefix that can be resumed from (of a pool without snapshots: that need
        not be received), and how many of them lie in blocks that a decode engine completed."""
        with self.pool.acquire(prompt) as lease:
            return lease.tokens, self._width * sum(block is _DECODED for block in lease.blocks)

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

    def in_transit(self, tokens: int) -> Transfer | None:
        """Count a state, and so many tokens of no block, against the budget; None where there is no room."""
        size_bytes = tokens * self.pool.geometry.block_bytes // self._width + self._state_bytes
        try:
            return self.pool.stage(None, size_bytes)
        except CacheError:
            return None

    def answer(self, prompt_tokens: int, computed_tokens: int) -> SizedAnswer | None:
        """What decoding computed of a sequence after its prompt, up to the last boundary it came to, on the
        budget; None when it came to none, or there is no room."""
        first_token = prompt_tokens // self._width * self._width
        tokens = computed_tokens // self._width * self._width
        transit = self.in_transit(tokens - first_token) if tokens > first_token else None
        if transit is None:
            return None
        return SizedAnswer(first_token=first_token, tokens=tokens, transit=transit)

    # -- copies --

    def copy_beyond(self, prompt: Prompt, held_tokens: int) -> SizedCopy:
        """What another cache, which has the blocks of `held_tokens`, lacks of this one. Raises EngineError
        when that is nothing."""
        lease = self.pool.acquire(prompt)
        has_state = lease.tokens > 0 and self.pool.geometry.snapshot_bytes > 0
        if lease.tokens <= held_tokens and not has_state:
            lease.release()
            raise EngineError("holds no more of this prefix")
        return self._copy(held_tokens, lease.tokens, lease, has_state=has_state)

    def answer_beyond(self, prompt: Prompt, held_tokens: int, answer: SizedAnswer) -> SizedCopy:
        """The same of a prompt that ends with an answer, whose blocks are kept here too. Raises EngineError
        when blocks before it are neither there nor here."""
        blocks = dict.fromkeys(range(answer.first_token, answer.tokens, self._width), _DECODED)
        self.pool.insert(prompt, blocks, {})
        first = answer.first_token
        lease = self.pool.retain(prompt.beginning(first // self._width if held_tokens < first else 0))
        if held_tokens < first and lease.tokens < first:
            lease.release()
            raise EngineError("blocks before the answer are gone", remedy="raise the datacenter's cache")
        return self._copy(held_tokens, answer.tokens, lease, has_state=True)

    def adopt(self, prompt: Prompt, copy: SizedCopy, *, decoded_from: int | None = None) -> int:
        """Take in a copy from another cache; how many tokens can be resumed from now. Blocks from
        `decoded_from` on were completed by a decode engine."""
        first_decoded = copy.tokens if decoded_from is None else decoded_from
        blocks = {
            first: _DECODED if first >= first_decoded else None
            for first in range(copy.first_token, copy.tokens, self._width)
        }
        states = {copy.tokens: None} if copy.has_state else {}
        return self.pool.insert(prompt, blocks, states).usable_tokens

    def _copy(self, held_tokens: int, tokens: int, lease: Lease, *, has_state: bool) -> SizedCopy:
        first_token = min(held_tokens, tokens)
        blocks = (tokens - first_token) // self._width
        return SizedCopy(
            first_token=first_token,
            tokens=tokens,
            has_state=has_state,
            size_bytes=blocks * self.pool.geometry.block_bytes + self._state_bytes * has_state,
            lease=lease,
        )

    def _blocks(self, prompt: Prompt, first_token: int) -> dict[int, None]:
        return dict.fromkeys(range(first_token, len(prompt.blocks) * self._width, self._width))
