"""A paced engine's prefix cache saves what profile and layout say; a simulated one decides alike."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas_lab.engine.decode import DecodeEngine
from prfaas_lab.engine.paced_executor import PacedDecode, PacedPrefill
from prfaas_lab.engine.payload import Pattern
from prfaas_lab.engine.prefill import PrefillEngine, PrefillJob, PrefillResult
from prfaas_lab.engine.prefix_cache import PrefixCache, pool_of
from prfaas_lab.engine.prefix_copies import Landing, Loan
from prfaas_lab.engine.sized_cache import SizedCache
from prfaas_lab.errors import EngineError
from prfaas_lab.kvcache import Geometry, Prompt, hash_prompt
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.model.buffers import IncomingCache, Produced
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


def simulated(budget_bytes: int = PLENTY, *, resumable: bool = True) -> SizedCache:
    pool = pool_of(Geometry.of(LAYOUT), budget_bytes, resumable=resumable)
    return SizedCache(pool, state_bytes=LAYOUT.state_bytes)


async def prefilled(
    engine: PrefillEngine, tokens: Sequence[int]
) -> tuple[PrefillResult, dict[SegmentKey, memoryview]]:
    sent: dict[SegmentKey, memoryview] = {}
    job = PrefillJob(request_id="r", prompt=range(len(tokens)), blocks=named(tokens))
    return await engine.run(job, lambda key, segment: sent.update({key: segment})), sent


def paced(kept: PrefixCache) -> PrefillEngine:
    executor = PacedPrefill(H20, LAYOUT, time_scale=1.0, rng=random.Random(1))
    return PrefillEngine(executor, max_queue=9, clock=now, cache=kept)


@settings(max_examples=20)
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


@settings(max_examples=30)
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
    sized = simulated(budget_bytes, resumable=resumable)

    async def main() -> None:
        async with paced(real) as engine:
            for blocks in prompts:
                tokens = [block for block in blocks for _ in range(CHUNK)]
                prompt = named(tokens)
                if resumable:
                    (cached, _), wanted = sized.find(prompt), sized.snapshots_for(prompt)
                    assert (await prefilled(engine, tokens))[0].cached_tokens == cached
                    sized.keep(prompt, cached, wanted)
                else:
                    incoming = IncomingCache(LAYOUT, len(tokens))
                    assert real.fill(prompt, incoming) == sized.find(prompt)[0]
                    real.keep_received(prompt, incoming)
                    sized.keep_received(prompt)
                assert real.pool.stats() == sized.pool.stats()
                assert real.pool.changes() == sized.pool.changes()

    run_virtual(main())
    sized.pool.check()


def test_a_copy_weighs_and_brings_what_a_real_one_does() -> None:
    source, target = simulated(), simulated()
    prompt = named(range(10 * CHUNK + 1))
    source.keep(prompt, 0, (10 * CHUNK,))
    target.keep(named(range(4 * CHUNK)), 0, ())
    copy = source.copy_beyond(prompt, target.known_tokens(prompt))
    assert copy.size_bytes == 6 * CHUNK * LAYOUT.token_bytes + LAYOUT.state_bytes
    assert source.pool.stats().pinned_bytes == source.pool.stats().memory_bytes
    copy.lease.release()
    assert target.adopt(prompt, copy) == 10 * CHUNK
    with pytest.raises(EngineError, match="holds no more"):
        target.copy_beyond(named(range(CHUNK)), 0)


ANSWER, SAID = 200, 300
"""Tokens of an answer, and of the prompt before it: computed as far as a boundary."""


async def decoded(engine: DecodeEngine, incoming: IncomingCache, nonce: int) -> Produced:
    left: asyncio.Future[Produced | None] = asyncio.get_running_loop().create_future()
    async with aclosing(engine.generate("r", nonce, on_left=left.set_result)) as given:
        async for _ in given:
            pass
    produced = await left
    assert produced is not None
    return produced


async def answered() -> tuple[Produced, PrefixCache]:
    """A prompt prefilled, and its answer decoded, by paced engines."""
    held = cache(resumable=False)
    executor = PacedDecode(H20, LAYOUT, time_scale=1.0, keep_answers=True)
    async with paced(cache()) as prefill, DecodeEngine(executor, max_batch=4, clock=now) as decode:
        result, sent = await prefilled(prefill, range(SAID))
        incoming = decode.reserve("r", SAID, ANSWER)
        for key, segment in sent.items():
            incoming.destination(key, len(segment))[:] = segment
            incoming.arrived(key)
        held.keep_received(named(range(SAID)), incoming)
        return await decoded(decode, incoming, result.first_token), held


def test_an_answer_is_handed_over_with_the_bytes_and_for_the_tokens_a_simulated_one_has() -> None:
    produced, held = run_virtual(answered())
    sized, target, copied = simulated(resumable=False), cache(), simulated()
    sized.keep_received(named(range(SAID)))
    answer = sized.answer(SAID, SAID + ANSWER - 1)
    assert answer is not None
    assert (answer.first_token, answer.tokens) == (produced.first_token, produced.tokens) == (256, 448)

    whole = named(range(produced.tokens))
    with answer.transit:
        copy = sized.answer_beyond(whole, 0, answer)
    with Loan.of_answer(held, whole, 0, produced) as loan, copy.lease, Landing(target, whole) as landing:
        assert held.pool.stats().pinned_bytes == sized.pool.stats().pinned_bytes > 0
        for key, segment in loan.segments:
            landing.destination(key, segment.nbytes)[:] = segment
        assert target.pool.stats().pinned_bytes == copy.size_bytes
        assert landing.adopt(decoded_from=256) == copied.adopt(whole, copy, decoded_from=256)
    assert target.pool.changes() == copied.pool.changes()

    following = named(range(produced.tokens + 100))
    found = target.load(following)
    assert found is not None
    assert (found.cached_tokens, found.decoded_tokens) == copied.find(following) == (448, 192)
    for pool in (held.pool, sized.pool, target.pool, copied.pool):
        pool.check()


def test_an_answer_that_came_to_no_boundary_is_nothing_to_hand_over() -> None:
    assert simulated().answer(CHUNK, 2 * CHUNK - 1) is None
    assert simulated().answer(CHUNK - 1, CHUNK) is not None
    assert simulated(LAYOUT.state_bytes).answer(CHUNK, 2 * CHUNK) is None, "no room"
