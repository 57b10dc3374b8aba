"""A paced engine's prefix cache saves what profile and layout say; a simulated one decides alike."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas_lab.engine.paced_executor import PacedPrefill
from prfaas_lab.engine.payload import Pattern
from prfaas_lab.engine.prefill import PrefillEngine, PrefillJob, PrefillResult
from prfaas_lab.engine.prefix_cache import PrefixCache, pool_of
from prfaas_lab.engine.sized_cache import SizedCache
from prfaas_lab.kvcache import Geometry, Prompt, hash_prompt
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.model.buffers import IncomingCache
from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.model.paced_layout import paced_layout
from prfaas_lab.model.profile import find_profile

H20, CHUNK = find_profile("8xH20"), 64
LAYOUT = paced_layout(6, 600, CHUNK)
PLENTY = 2**30


def now() -> float:
    return asyncio.get_running_loop().time()


def named(tokens: Sequence[int]) -> Prompt:
    return hash_prompt(tokens, block_tokens=CHUNK, namespace=b"test")


def cache(budget_bytes: int = PLENTY, *, resumable: bool = True) -> PrefixCache:
    return PrefixCache.of(LAYOUT, budget_bytes, resumable=resumable)


async def prefilled(
    engine: PrefillEngine, tokens: Sequence[int]
) -> tuple[PrefillResult, dict[SegmentKey, memoryview]]:
    sent: dict[SegmentKey, memoryview] = {}
    job = PrefillJob(request_id="r", prompt=range(len(tokens)), blocks=named(tokens))
    return await engine.run(job, lambda key, segment: sent.update({key: segment})), sent


def paced(kept: PrefixCache) -> PrefillEngine:
    executor = PacedPrefill(H20, LAYOUT, time_scale=1.0, rng=random.Random(1))
    return PrefillEngine(executor, max_queue=9, clock=now, cache=kept)


@settings(max_examples=20, deadline=None)
@given(first=st.integers(1, 2000), more=st.integers(1, 2000))
def test_a_hit_saves_exactly_what_the_profile_gives_its_tokens(first: int, more: int) -> None:
    async def main() -> tuple[PrefillResult, PrefillResult]:
        async with paced(cache()) as engine:
            before, _ = await prefilled(engine, range(first))
            return before, (await prefilled(engine, range(first + more)))[0]

    one, two = run_virtual(main())
    assert two.cached_tokens == (first - 1) // CHUNK * CHUNK
    assert one.finished_at - one.started_at == pytest.approx(H20.prefill_s(first))
    took = two.finished_at - two.started_at
    cached_s = H20.prefill_s(two.cached_tokens) - H20.prefill_s(0)
    assert took == pytest.approx(H20.prefill_s(first + more) - cached_s)


async def test_only_the_increment_is_sent_to_a_decode_engine_that_holds_the_blocks() -> None:
    kept, held = cache(), cache(resumable=False)
    nonces, missing = [], []
    async with paced(kept) as engine:
        for tokens in (range(300), range(500)):
            result, sent = await prefilled(engine, tokens)
            incoming = IncomingCache(LAYOUT, len(tokens))
            held.fill(named(tokens), incoming)
            missing.append(incoming.missing_bytes)
            for key in incoming.missing():
                incoming.destination(key, len(sent[key]))[:] = sent[key]
                incoming.arrived(key)
            assert incoming.complete
            assert Pattern(LAYOUT).damaged(result.first_token, incoming) == []
            held.keep_received(named(tokens), incoming)
            nonces.append(result.first_token)
    assert missing == [LAYOUT.request_bytes(300), LAYOUT.request_bytes(500, cached_tokens=256)]
    assert nonces[0] != nonces[1]
    kept.pool.check()
    held.pool.check()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=25),
    st.integers(1, 12),
    st.booleans(),
)
def test_entries_without_bytes_are_found_kept_and_evicted_as_real_ones(
    prompts: list[list[int]], room: int, resumable: bool
) -> None:
    """The same prompts through a paced engine's cache and through a simulated one's."""
    budget_bytes = room * (LAYOUT.token_bytes * CHUNK + LAYOUT.state_bytes)
    real = cache(budget_bytes, resumable=resumable)
    sized = SizedCache(pool_of(Geometry.of(LAYOUT), budget_bytes, resumable=resumable))

    async def main() -> None:
        async with paced(real) as engine:
            for blocks in prompts:
                tokens = [block for block in blocks for _ in range(CHUNK)]
                prompt = named(tokens)
                if resumable:
                    cached, wanted = sized.find(prompt), sized.snapshots_for(prompt)
                    assert (await prefilled(engine, tokens))[0].cached_tokens == cached
                    sized.keep(prompt, cached, wanted)
                else:
                    incoming = IncomingCache(LAYOUT, len(tokens))
                    assert real.fill(prompt, incoming) == sized.find(prompt)
                    real.keep_received(prompt, incoming)
                    sized.keep_received(prompt)
                assert real.pool.stats() == sized.pool.stats()
                assert real.pool.changes() == sized.pool.changes()

    run_virtual(main())
    sized.pool.check()


def test_a_copy_weighs_and_brings_what_a_real_one_does() -> None:
    source, target = SizedCache(cache().pool), SizedCache(cache().pool)
    prompt = named(range(10 * CHUNK + 1))
    source.keep(prompt, 0, (10 * CHUNK,))
    target.keep(named(range(4 * CHUNK)), 0, ())
    copy = source.copy_beyond(prompt, target.known_tokens(prompt))
    assert copy is not None
    assert copy.size_bytes == 6 * CHUNK * LAYOUT.token_bytes + LAYOUT.state_bytes
    assert target.adopt(prompt, copy) == 10 * CHUNK
    assert target.copy_beyond(named(range(CHUNK)), 0) is None, "nothing to resume from"
