"""Claims about reuse on the real models: a prefix from the cache gives the bytes of a prefix computed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from prfaas_lab.engine.executor import Emit
from prfaas_lab.engine.kept import Kept, Segment
from prfaas_lab.engine.prefill import PrefillEngine, PrefillJob, PrefillResult
from prfaas_lab.engine.prefix_cache import PrefixCache
from prfaas_lab.engine.prefix_copies import Landing, Loan
from prfaas_lab.engine.spill import SpillTier
from prfaas_lab.engine.torch_executor import TorchPrefill
from prfaas_lab.kvcache import Prompt, hash_prompt
from prfaas_lab.model.buffers import IncomingCache, SegmentRefused
from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.model.torch_cache import layout_of
from prfaas_lab.model.torch_reference import generate

pytestmark = pytest.mark.model
CHUNK = 64
PLENTY = 2**28
SYSTEM = tuple(i * i * 31 % 384 for i in range(3 * CHUNK))


def prompt(number: int, tokens: int) -> tuple[int, ...]:
    """A prompt that begins with the system prompt and goes on in its own way."""
    return SYSTEM + tuple((i * 17 + number * 101) % 384 for i in range(tokens))


def named(tokens: tuple[int, ...]) -> Prompt:
    return hash_prompt(tokens, block_tokens=CHUNK, namespace=b"test")


class Received(dict[SegmentKey, bytes]):
    """What a prefill sends, as its receiver would have it."""

    def emit(self, key: SegmentKey, segment: memoryview) -> None:
        assert key not in self, "a segment is sent once"
        self[key] = bytes(segment)


@asynccontextmanager
async def engine(model: PreTrainedModel, budget_bytes: int = PLENTY) -> AsyncIterator[PrefillEngine]:
    layout = layout_of(model, CHUNK)
    cache = PrefixCache.of(layout, budget_bytes, resumable=True)
    executor = TorchPrefill(model, layout)
    async with PrefillEngine(executor, max_queue=8, clock=time.monotonic, cache=cache) as prefill:
        yield prefill
    cache.pool.check()


async def run(
    prefill: PrefillEngine, tokens: tuple[int, ...], emit: Emit, *, reuse: bool = True
) -> PrefillResult:
    blocks = named(tokens) if reuse else None
    return await prefill.run(PrefillJob(request_id="r", prompt=tokens, blocks=blocks), emit)


async def test_what_a_reused_prefix_gives_is_byte_for_byte_what_computing_gives(
    model: PreTrainedModel,
) -> None:
    async with engine(model) as prefill:
        for number, length in enumerate((CHUNK + 5, 40, 2 * CHUNK, 1, 3 * CHUNK + 1)):
            whole, reused = Received(), Received()
            tokens = prompt(number, length)
            expected = await run(prefill, tokens, whole.emit, reuse=False)
            await run(prefill, tokens, Received().emit)
            found = await run(prefill, tokens, reused.emit)
            assert found.cached_tokens == (len(tokens) - 1) // CHUNK * CHUNK > 0
            assert found.computed_tokens + found.cached_tokens == len(tokens)
            assert reused == whole
            assert found.first_token == expected.first_token == generate(model, tokens, 1, CHUNK).tokens[0]


async def test_the_third_prompt_resumes_where_the_first_two_parted(model: PreTrainedModel) -> None:
    async with engine(model) as prefill:
        found = [await run(prefill, prompt(n, 2 * CHUNK), Received().emit) for n in range(3)]
    assert [each.cached_tokens for each in found] == [0, 0, len(SYSTEM)]


async def test_a_prefix_that_was_evicted_is_computed_again(qwen: PreTrainedModel) -> None:
    layout = layout_of(qwen, CHUNK)
    room_for_one = layout.request_bytes(5 * CHUNK)
    async with engine(qwen, room_for_one) as prefill:
        for number in (0, 1, 0):
            reused, tokens = Received(), prompt(number, 2 * CHUNK)[CHUNK * (number % 2) :]
            found = await run(prefill, tokens, reused.emit)
            assert found.first_token == generate(qwen, tokens, 1, CHUNK).tokens[0]
            assert found.cached_tokens == 0


@pytest.mark.parametrize("state", [False, True])
async def test_a_damaged_entry_costs_a_computation_and_no_token(qwen: PreTrainedModel, state: bool) -> None:
    tokens = prompt(0, 2 * CHUNK)
    async with engine(qwen) as prefill:
        whole, again = Received(), Received()
        await run(prefill, tokens, whole.emit)
        damage(prefill, tokens, state=state)
        found = await run(prefill, tokens, again.emit)
        assert found.cached_tokens == 0
        assert again == whole
        assert prefill.cache is not None
        assert prefill.cache.pool.stats().damaged == 1
        assert (await run(prefill, tokens, Received().emit)).cached_tokens == 4 * CHUNK


def damage(prefill: PrefillEngine, tokens: tuple[int, ...], *, state: bool) -> None:
    """Turn a bit of what the cache holds for a prompt."""
    assert prefill.cache is not None
    with prefill.cache.pool.acquire(named(tokens)) as lease:
        kept: Kept = lease.snapshot if state else lease.blocks[1]
        key, segment = kept.segments[0]
        spoiled = bytearray(segment)
        spoiled[3] ^= 1
        kept.segments = ((key, memoryview(spoiled)), *kept.segments[1:])


async def test_a_decode_engine_is_spared_what_it_holds(qwen: PreTrainedModel) -> None:
    layout = layout_of(qwen, CHUNK)
    tokens = prompt(0, 2 * CHUNK + 7)
    held = PrefixCache.of(layout, PLENTY, resumable=False)
    first, second = IncomingCache(layout, len(tokens)), IncomingCache(layout, len(tokens))
    sent = Received()
    async with engine(qwen) as prefill:
        await run(prefill, tokens, sent.emit)
    for key, segment in sent.items():
        first.destination(key, len(segment))[:] = segment
        first.arrived(key)
    assert held.fill(named(tokens), IncomingCache(layout, len(tokens))) == 0
    held.keep_received(named(tokens), first)
    assert held.fill(named(tokens), second) == 5 * CHUNK
    assert second.missing_bytes == layout.request_bytes(len(tokens), cached_tokens=5 * CHUNK)
    for key in second.missing():
        second.destination(key, len(sent[key]))[:] = sent[key]
    second.all_arrived()
    assert second.complete
    for layer, parts in enumerate(layout.layers):
        for part in range(len(parts.parts)):
            assert second.part(layer, part) == first.part(layer, part)


async def test_a_prefix_copied_from_another_engine_is_as_good_as_ones_own(model: PreTrainedModel) -> None:
    tokens, longer = prompt(0, 2 * CHUNK), prompt(0, 4 * CHUNK + 3)
    async with engine(model) as here, engine(model) as there:
        await run(here, longer, Received().emit)
        await run(there, tokens, Received().emit)
        assert here.cache is not None
        assert there.cache is not None
        with Landing(there.cache, named(longer)) as landing:
            held = landing.held_tokens
            with Loan.of_prefix(here.cache, named(longer), held) as loan:
                land(landing, loan.segments)
            assert loan.tokens == landing.adopt() == 7 * CHUNK
        sizes = sum(segment.nbytes for _, segment in loan.segments)
        assert sizes == here.cache.layout.request_bytes(loan.tokens, cached_tokens=held)
        whole, reused = Received(), Received()
        await run(there, longer, whole.emit, reuse=False)
        assert (await run(there, longer, reused.emit)).cached_tokens == 7 * CHUNK
        assert reused == whole


def land(landing: Landing, segments: Sequence[Segment]) -> None:
    for key, segment in segments:
        landing.destination(key, segment.nbytes)[:] = segment


async def test_a_copy_in_flight_is_on_the_budget_of_both_ends(qwen: PreTrainedModel) -> None:
    layout, tokens = layout_of(qwen, CHUNK), prompt(0, 3)
    weight = layout.request_bytes(3 * CHUNK)
    here = PrefixCache.of(layout, weight, resumable=True)
    there = PrefixCache.of(layout, weight, resumable=True)
    async with PrefillEngine(
        TorchPrefill(qwen, layout), max_queue=1, clock=time.monotonic, cache=here
    ) as one:
        await run(one, tokens, Received().emit)
    with Loan.of_prefix(here, named(tokens), 0) as loan, Landing(there, named(tokens)) as landing:
        land(landing, loan.segments[:5])
        land(landing, loan.segments[:5])  # again, as when a connection broke
        arrived = sum(segment.nbytes for _, segment in loan.segments[:5])
        assert (here.pool.stats().pinned_bytes, there.pool.stats().pinned_bytes) == (weight, arrived)
        assert here.stage(None, 1) is None, "what is being sent is not evicted"
        land(landing, loan.segments[5:])
        assert there.pool.stats().transfer_peak_bytes == weight
        assert landing.adopt() == 3 * CHUNK
    for cache in (here, there):
        assert (cache.pool.stats().pinned_bytes, cache.pool.stats().memory_bytes) == (0, weight)
        cache.pool.check()


async def test_a_copy_for_which_there_is_no_room_is_refused_and_given_up(qwen: PreTrainedModel) -> None:
    layout = layout_of(qwen, CHUNK)
    cache = PrefixCache.of(layout, layout.request_bytes(3 * CHUNK), resumable=True)
    key = SegmentKey(0, 0, 0)
    tail = cache.stage(None, cache.pool.budget_bytes)
    assert tail is not None
    with Landing(cache, named(SYSTEM)) as landing:
        with pytest.raises(SegmentRefused, match="no room for a transfer"):
            landing.destination(key, layout.segment_bytes(key, CHUNK))
        tail.release()
        landing.destination(key, layout.segment_bytes(key, CHUNK))
    stats = cache.pool.stats()
    assert (stats.pinned_bytes, stats.memory_bytes, stats.transfers_refused) == (0, 0, 1)
    cache.pool.check()


async def test_the_prefix_that_a_copy_goes_on_from_stays_until_the_copy_is_there(
    qwen: PreTrainedModel,
) -> None:
    tokens = prompt(0, 3 * CHUNK + 3)
    async with engine(qwen) as here, engine(qwen, layout_of(qwen, CHUNK).request_bytes(9 * CHUNK)) as there:
        await run(here, tokens, Received().emit)
        await run(there, prompt(0, 3), Received().emit)
        assert here.cache is not None
        assert there.cache is not None
        with Landing(there.cache, named(tokens)) as landing:
            with Loan.of_prefix(here.cache, named(tokens), landing.held_tokens) as loan:
                assert len({key.chunk for key, _ in loan.segments}) == 3, "only what is lacking"
                land(landing, loan.segments)
            await run(there, tuple(range(5 * CHUNK)), Received().emit)  # would have pushed it out
            assert landing.adopt() == 6 * CHUNK


@pytest.mark.parametrize("state", [False, True])
async def test_damage_to_what_is_being_sent_costs_a_computation_and_no_more(
    qwen: PreTrainedModel, state: bool
) -> None:
    tokens = prompt(0, 2 * CHUNK)
    async with engine(qwen) as prefill:
        await run(prefill, tokens, Received().emit)
        assert prefill.cache is not None
        with Loan.of_prefix(prefill.cache, named(tokens), 0):
            damage(prefill, tokens, state=state)
            assert (await run(prefill, tokens, Received().emit)).cached_tokens == 0
            prefill.cache.pool.check()
        assert (await run(prefill, tokens, Received().emit)).cached_tokens == 0
        assert (await run(prefill, tokens, Received().emit)).cached_tokens == 4 * CHUNK


async def test_an_incomplete_copy_is_of_no_use_but_does_no_harm(qwen: PreTrainedModel) -> None:
    tokens = prompt(0, 2 * CHUNK + 3)
    async with engine(qwen) as here, engine(qwen) as there:
        await run(here, tokens, Received().emit)
        assert here.cache is not None
        assert there.cache is not None
        with (
            Loan.of_prefix(here.cache, named(tokens), 0) as loan,
            Landing(there.cache, named(tokens)) as landing,
        ):
            land(landing, loan.segments[:-1])
            assert landing.adopt() == 0
        reused, whole = Received(), Received()
        assert (await run(there, tokens, reused.emit)).cached_tokens == 0
        await run(there, tokens, whole.emit, reuse=False)
        assert reused == whole


def test_a_copy_of_the_wrong_shape_is_refused(qwen: PreTrainedModel) -> None:
    cache = PrefixCache.of(layout_of(qwen, CHUNK), PLENTY, resumable=True)
    fits = SegmentKey(0, 0, 0)
    size = cache.layout.segment_bytes(fits, CHUNK)
    with Landing(cache, named(SYSTEM)) as landing:
        assert len(landing.destination(fits, size)) == size
        for key, nbytes in ((fits, size + 1), (SegmentKey(99, 0, 0), size), (SegmentKey(0, 0, 3), size)):
            with pytest.raises(SegmentRefused):
                landing.destination(key, nbytes)


async def test_a_prefix_that_was_spilled_is_as_good_as_one_in_memory(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    layout = layout_of(model, CHUNK)
    room_for_one = layout.request_bytes(6 * CHUNK) + layout.state_bytes
    cache = PrefixCache.of(
        layout, room_for_one, resumable=True, spill=SpillTier(tmp_path / "kv", 10 * room_for_one)
    )
    executor = TorchPrefill(model, layout)
    one, other = prompt(0, 3 * CHUNK), prompt(1, 3 * CHUNK)[CHUNK:]
    async with PrefillEngine(executor, max_queue=8, clock=time.monotonic, cache=cache) as prefill:
        whole, reused = Received(), Received()
        await run(prefill, one, whole.emit, reuse=False)
        for tokens in (one, other):
            await run(prefill, tokens, Received().emit)
        assert cache.pool.on_disk(named(one))
        found = await run(prefill, one, reused.emit)
        stats = cache.pool.stats()
        assert found.cached_tokens == (len(one) - 1) // CHUNK * CHUNK
        assert (stats.damaged, stats.disk_hit_tokens > 0, stats.reloaded > 0) == (0, True, True)
        assert reused == whole
    cache.pool.check()
    cache.close()
    assert not (tmp_path / "kv").exists()


@pytest.mark.parametrize(
    ("snapshots", "chunks"),
    [("branch", [7]), ("end", [7]), ("every", [3, 6]), ("every+end", [3, 6, 7])],
)
def test_every_snapshot_policy_can_be_chosen(
    qwen: PreTrainedModel, snapshots: str, chunks: list[int]
) -> None:
    cache = PrefixCache.of(
        layout_of(qwen, CHUNK), PLENTY, resumable=True, snapshots=snapshots, snapshot_every=3 * CHUNK
    )
    tokens = tuple(range(7 * CHUNK + 5))
    assert [end // CHUNK for end in cache.snapshots_for(named(tokens))] == chunks
