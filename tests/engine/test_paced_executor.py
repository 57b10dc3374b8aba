"""A paced engine keeps its profile's time to the letter, and its payload cannot be mistaken."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas_lab.engine.decode import DecodeEngine
from prfaas_lab.engine.paced_executor import PacedDecode, PacedPrefill
from prfaas_lab.engine.payload import Pattern
from prfaas_lab.engine.prefill import PrefillEngine, PrefillJob
from prfaas_lab.errors import EngineError, LabError
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.model.buffers import IncomingCache, segment_keys
from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.model.paced_layout import paced_bytes, paced_layout
from prfaas_lab.model.profile import find_profile

H20, CHUNK = find_profile("8xH20"), 8192
LAYOUT = paced_layout(6, 61_000, CHUNK)
STEP_S = H20.step_s(20)


def prefiller(time_scale: float = 1.0) -> PacedPrefill:
    return PacedPrefill(H20, LAYOUT, time_scale=time_scale, rng=random.Random(1))


def now() -> float:
    return asyncio.get_running_loop().time()


@settings(max_examples=30)
@given(
    prompts=st.lists(st.integers(1, 131_072), min_size=1, max_size=5), time_scale=st.sampled_from([0.1, 1.0])
)
def test_a_row_of_prompts_takes_the_sum_of_their_profile_times(prompts: list[int], time_scale: float) -> None:
    async def main() -> float:
        async with PrefillEngine(prefiller(time_scale), max_queue=9, clock=now) as engine:
            jobs = [PrefillJob(request_id=f"r{i}", prompt=range(n)) for i, n in enumerate(prompts)]
            await asyncio.gather(*(engine.run(job, lambda key, segment: None) for job in jobs))
            return now()

    assert run_virtual(main()) == pytest.approx(time_scale * sum(H20.prefill_s(n) for n in prompts))


def test_a_late_timer_costs_the_next_prompt_nothing() -> None:
    async def main() -> float:
        executor = prefiller()
        await executor.prefill(range(1024), lambda key, segment: None, arrived_at=0.0)
        await asyncio.sleep(0.3)  # the loop was busy
        await executor.prefill(range(1024), lambda key, segment: None, arrived_at=0.1)
        return now()

    assert run_virtual(main()) == pytest.approx(2 * H20.prefill_s(1024))


@settings(max_examples=30)
@given(tokens=st.integers(1, 60_000), cached_chunks=st.integers(0, 3))
def test_what_is_emitted_is_the_layout_each_chunk_in_its_time(tokens: int, cached_chunks: int) -> None:
    start = min(cached_chunks * CHUNK, (tokens - 1) // CHUNK * CHUNK)
    emitted: dict[SegmentKey, tuple[float, int]] = {}

    async def main() -> None:
        await prefiller().prefill(
            range(tokens),
            lambda key, segment: emitted.update({key: (now(), len(segment))}),
            cached=IncomingCache(LAYOUT, start) if start else None,
            arrived_at=0.0,
        )

    run_virtual(main())
    assert list(emitted) == list(segment_keys(LAYOUT, tokens))
    assert sum(size for _, size in emitted.values()) == LAYOUT.request_bytes(tokens)
    growing = [at for key, (at, _) in emitted.items() if key.layer == 3]
    ends = [min(end, tokens) for end in range(CHUNK, tokens + CHUNK, CHUNK)]
    assert growing == pytest.approx([H20.prefill_s(end, start) if end > start else 0.0 for end in ends])


def received(tokens: int, nonce: int) -> IncomingCache:
    incoming, pattern = IncomingCache(LAYOUT, tokens), Pattern(LAYOUT)
    for key in segment_keys(LAYOUT, tokens):
        size = LAYOUT.segment_bytes(key, tokens)
        incoming.destination(key, size)[:] = pattern.segment(nonce, key, size)
        incoming.arrived(key)
    return incoming


@pytest.mark.parametrize(("layer", "part"), [(0, 0), (2, 0), (3, 0)])
async def test_one_changed_byte_is_found(layer: int, part: int) -> None:
    incoming = received(20_000, nonce=7)
    assert Pattern(LAYOUT).damaged(7, incoming) == []
    memory = incoming.part(layer, part)
    memory[-1] ^= 1
    with pytest.raises(EngineError, match="1 segments arrived changed"):
        await PacedDecode(H20, LAYOUT, time_scale=1.0).join("r", incoming, 7)


def test_another_requests_payload_is_found() -> None:
    assert Pattern(LAYOUT).damaged(8, received(20_000, nonce=7))


def test_decoding_takes_a_step_a_token_whoever_comes_and_goes() -> None:
    async def answer(engine: DecodeEngine, name: str, starts_s: float, tokens: int) -> float:
        await asyncio.sleep(starts_s)
        for key in (cache := engine.reserve(name, 100, tokens)).missing():
            size = LAYOUT.segment_bytes(key, 100)
            cache.destination(key, size)[:] = Pattern(LAYOUT).segment(3, key, size)
            cache.arrived(key)
        given = []
        async with contextlib.aclosing(engine.generate(name, 3)) as stream:
            async for some in stream:
                given += some
        assert len(given) == tokens
        return now()

    async def main() -> list[float]:
        decode = PacedDecode(H20, LAYOUT, time_scale=1.0)
        async with DecodeEngine(decode, max_batch=20, clock=now) as engine:
            starts = [0.0, 10.25 * STEP_S, 300.5 * STEP_S]
            return await asyncio.gather(*(answer(engine, f"r{i}", at, 1024) for i, at in enumerate(starts)))

    # Who joins waits for the step under way; its 1023 further tokens take a step each.
    ends = [1023 * STEP_S, (11 + 1023) * STEP_S, (301 + 1023) * STEP_S]
    assert run_virtual(main()) == pytest.approx(ends, abs=1e-6)


def test_a_scale_too_small_for_whole_bytes_is_refused_with_one_that_fits() -> None:
    with pytest.raises(LabError, match=r"write scale: 5\.8\d*e-05"):
        paced_bytes(H20.kvcache, 0.00004)
    token_bytes, state_bytes = paced_bytes(H20.kvcache, 0.00035)
    whole = state_bytes + token_bytes * 32 * 1024
    assert whole == pytest.approx(0.00035 * H20.kv_bytes(32 * 1024), rel=0.02)
