"""Prompts and payloads that carry their own tokens, so that a wrong hit shows."""

from __future__ import annotations

from collections.abc import Sequence

from prfaas_lab.kvcache.blocks import Block, Geometry, Prompt, hash_prompt
from prfaas_lab.kvcache.lease import Lease
from prfaas_lab.kvcache.pool import Pool
from prfaas_lab.kvcache.values import Inserted

WIDTH = 2
GEOMETRY = Geometry(block_tokens=WIDTH, block_bytes=10, snapshot_bytes=30)


def named(tokens: Sequence[int], *, weak: bool = False) -> Prompt:
    """The prompt's names; `weak` cuts the chained key to two values, so that keys collide all the time."""
    prompt = hash_prompt(tokens, block_tokens=WIDTH, namespace=b"test")
    if not weak:
        return prompt
    blocks = tuple(Block(bytes([block.key[0] % 2]), block.check) for block in prompt.blocks)
    return Prompt(tokens=prompt.tokens, block_tokens=WIDTH, blocks=blocks)


def content(kind: str, tokens: Sequence[int], end: int) -> bytes:
    return f"{kind} {list(tokens[:end])}".encode()


def prefilled(tokens: Sequence[int]) -> dict[int, bytes]:
    """The payload of every complete block, by where it starts."""
    starts = range(0, len(tokens) - WIDTH + 1, WIDTH)
    return {start: content("kv", tokens, start + WIDTH) for start in starts}


def states(tokens: Sequence[int], *ends: int) -> dict[int, bytes]:
    return {end: content("state", tokens, end) for end in ends}


def put(pool: Pool, tokens: Sequence[int], *ends: int) -> Inserted:
    """Insert all of a prompt's blocks, and snapshots at `ends`."""
    return pool.insert(named(tokens), prefilled(tokens), states(tokens, *ends))


def assert_serves(lease: Lease, tokens: Sequence[int], *, stateful: bool = True) -> None:
    """What a lease holds was computed from exactly this prompt's tokens."""
    assert lease.tokens < max(1, len(tokens))
    expected = [content("kv", tokens, end) for end in range(WIDTH, lease.tokens + 1, WIDTH)]
    assert list(lease.blocks) == expected
    if lease.tokens and stateful:
        assert lease.snapshot == content("state", tokens, lease.tokens)
