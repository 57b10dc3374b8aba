"""What is said about prefix caches between the controller and the engines, as JSON.

Block names travel as hexadecimal, 32 bytes a block: the controller hashes a prompt once, for both ends.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prfaas_lab.kvcache import Block, Delta, Pool, PoolStats, Prompt
from prfaas_lab.kvcache.blocks import DIGEST_BYTES
from prfaas_lab.spec.topology import Spec

_CHANGES = ("blocks_added", "blocks_dropped", "snapshots_added", "snapshots_dropped")


class PromptNames(Spec):
    """A prompt as the caches see it (`kvcache.Prompt`)."""

    tokens: int
    block_tokens: int
    names: str

    @classmethod
    def of(cls, prompt: Prompt) -> PromptNames:
        names = b"".join(block.key + block.check for block in prompt.blocks).hex()
        return cls(tokens=prompt.tokens, block_tokens=prompt.block_tokens, names=names)

    def prompt(self) -> Prompt:
        raw, width = bytes.fromhex(self.names), 2 * DIGEST_BYTES
        pairs = [raw[start : start + width] for start in range(0, len(raw), width)]
        blocks = tuple(Block(pair[:DIGEST_BYTES], pair[DIGEST_BYTES:]) for pair in pairs)
        return Prompt(tokens=self.tokens, block_tokens=self.block_tokens, blocks=blocks)


def news_of(pool: Pool, *, in_full: bool) -> dict[str, Any]:
    """What the controller must know of a pool that may have changed."""
    delta = pool.listing() if in_full else pool.changes()
    changes = {name: [key.hex() for key in getattr(delta, name)] for name in _CHANGES}
    told = {"epoch": delta.epoch, "version": delta.version, "full": delta.full, **changes}
    return {"delta": told, "stats": asdict(pool.stats())}


def read_news(news: dict[str, Any]) -> tuple[Delta, PoolStats]:
    told = news["delta"]
    changes = {name: tuple(bytes.fromhex(key) for key in told[name]) for name in _CHANGES}
    delta = Delta(epoch=told["epoch"], version=told["version"], full=told["full"], **changes)
    return delta, PoolStats(**news["stats"])
