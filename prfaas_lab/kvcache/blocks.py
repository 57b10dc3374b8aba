"""Token blocks and their names: how two prompts are known to begin alike.

**Why a name can be trusted.** A block is named by two digests: `key`, a keyed blake2b-128 over the
previous block's key and this block's tokens (so it stands for the whole prefix), and `check`, a
blake2b-128 of this block's tokens alone under another personalisation. The pool finds a block by
both, below the very parent that was matched the same way. So to be served tokens that differ, a
prompt must collide in *both* digests at once at the first block that differs: 256 bits, and keyed by
the namespace, so that a collision found for one run means nothing in another. By accident alone, with
10^9 blocks, two *keys* are equal in one of 10^20 runs, and then the checks still differ. Comparing
the tokens themselves would cost 4 bytes a token in the index and on every message about it.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from prfaas_lab.errors import LabError
from prfaas_lab.model.layout import CacheLayout

DIGEST_BYTES = 16
_ROOT = b"\0" * DIGEST_BYTES


class CacheError(LabError):
    """A prefix cache that cannot be set up, is full of pinned bytes, or has read back damaged bytes."""


class Block(NamedTuple):
    """The name of a complete token block and of all that precedes it. Equal names, equal prefixes."""

    key: bytes
    check: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt as the cache sees it: its length, and the names of its complete blocks in order."""

    tokens: int
    block_tokens: int
    blocks: tuple[Block, ...]

    @property
    def reusable_blocks(self) -> int:
        """Blocks a hit may cover: at least one token is always left, for its logits start the answer."""
        return max(0, self.tokens - 1) // self.block_tokens

    def beginning(self, blocks: int) -> Prompt:
        """Its first blocks and one token more, so that all of them may be reused."""
        named = self.blocks[:blocks]
        return Prompt(tokens=len(named) * self.block_tokens + 1, block_tokens=self.block_tokens, blocks=named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What a block and a snapshot weigh. `snapshot_bytes` 0: a model without state, in which every
    block boundary is usable by itself."""

    block_tokens: int
    block_bytes: int
    snapshot_bytes: int

    def __post_init__(self) -> None:
        if self.block_tokens <= 0 or self.block_bytes <= 0 or self.snapshot_bytes < 0:
            raise CacheError(
                f"a block of {self.block_tokens} tokens and {self.block_bytes} bytes holds no KVCache",
                remedy="use a model with at least one full-attention layer",
            )

    @classmethod
    def of(cls, layout: CacheLayout, *, block_tokens: int | None = None) -> Geometry:
        """The geometry of a model's cache; a block is one prefill chunk unless told.

        Raises CacheError when blocks are not whole chunks: states exist at chunk boundaries only, and
        resuming elsewhere would change the chunk schedule and with it the last bits of the logits.
        """
        block = layout.chunk_tokens if block_tokens is None else block_tokens
        if block % layout.chunk_tokens:
            raise CacheError(
                f"a block of {block} tokens is not made of whole chunks of {layout.chunk_tokens}",
                remedy=f"write a multiple of {layout.chunk_tokens}",
            )
        return cls(
            block_tokens=block, block_bytes=layout.token_bytes * block, snapshot_bytes=layout.state_bytes
        )


def hash_prompt(tokens: Sequence[int], *, block_tokens: int, namespace: bytes) -> Prompt:
    """Name the complete blocks of `tokens` (each in 0 .. 2^32-1).

    `namespace` tells apart everything whose KVCache must not be mixed: the layout's fingerprint and
    the identity of the weights, and a per-run secret where prompts are not trusted.
    """
    blocks = _named(tokens, _ROOT, block_tokens, namespace)
    return Prompt(tokens=len(tokens), block_tokens=block_tokens, blocks=blocks)


def extend_prompt(prompt: Prompt, tokens: Sequence[int], *, namespace: bytes) -> Prompt:
    """The prompt that goes on with `tokens` after the last complete block of `prompt`, whose own tail
    they begin with."""
    root = prompt.blocks[-1].key if prompt.blocks else _ROOT
    blocks = (*prompt.blocks, *_named(tokens, root, prompt.block_tokens, namespace))
    length = len(prompt.blocks) * prompt.block_tokens + len(tokens)
    return Prompt(tokens=length, block_tokens=prompt.block_tokens, blocks=blocks)


def _little_endian(tokens: Sequence[int]) -> bytes:
    """Four bytes a token."""
    words = array("I", tokens)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def _named(tokens: Sequence[int], key: bytes, block_tokens: int, namespace: bytes) -> tuple[Block, ...]:
    """The names of the complete blocks of `tokens`, after the block named `key`."""
    raw = _little_endian(tokens)
    secret = blake2b(namespace, digest_size=32).digest()
    width, blocks = 4 * block_tokens, []
    for start in range(0, len(raw) - width + 1, width):
        content = raw[start : start + width]
        chain = blake2b(key, digest_size=DIGEST_BYTES, key=secret, person=b"kv-chain")
        chain.update(content)
        key = chain.digest()
        check = blake2b(content, digest_size=DIGEST_BYTES, key=secret, person=b"kv-check").digest()
        blocks.append(Block(key, check))
    return tuple(blocks)
