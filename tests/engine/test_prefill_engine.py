"""Prompts are served in order, one at a time, and every way out of the line leaves it in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace

import pytest
from fake_executors import LAYOUT, Clock, FakePrefill

from prfaas_lab.engine.line import Line, Withdrawn
from prfaas_lab.engine.prefill import PrefillEngine, PrefillJob, PrefillResult
from prfaas_lab.engine.prefix_cache import PrefixCache
from prfaas_lab.errors import EngineError
from prfaas_lab.kvcache import hash_prompt
from prfaas_lab.model.buffers import segment_keys
from prfaas_lab.model.layout import SegmentKey


def job(number: int, tokens: int = 100) -> PrefillJob:
    return PrefillJob(request_id=f"r{number}", prompt=(number,) * tokens)


def ignore(key: SegmentKey, segment: memoryview) -> None:
    pass


async def outcome(result: Awaitable[PrefillResult]) -> PrefillResult | Exception:
    try:
        return await result
    except Exception as error:
        return error


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_prompts_are_served_first_come_first_served() -> None:
    executor = FakePrefill(Clock())
    async with PrefillEngine(executor, max_queue=8, clock=Clock()) as engine, asyncio.TaskGroup() as group:
        for number in (3, 1, 2):
            group.create_task(engine.run(job(number), ignore))
        await settle()
        assert (engine.stats.running, engine.stats.queued) == (1, 2)
        executor.proceed.set()
    assert executor.order == [3, 1, 2]
    assert executor.closed


async def test_a_result_tells_when_computing_began_and_ended_and_what_it_gave() -> None:
    clock = Clock()
    executor, started, segments = FakePrefill(clock), [], []
    executor.proceed.set()
    async with PrefillEngine(executor, max_queue=8, clock=clock) as engine:
        clock.now = 5.0
        result = await engine.run(
            job(1), lambda key, _: segments.append(key), on_started=lambda: started.append(clock.now)
        )
    assert (result.first_token, result.computed_tokens) == (100, 100)
    assert (result.started_at, result.finished_at) == (5.0, 6.0)
    assert started == [5.0]
    assert segments == list(segment_keys(LAYOUT, 100))
    assert (engine.stats.busy_s, engine.stats.tokens_total) == (1.0, 100)


async def test_only_uncached_tokens_count_as_computed() -> None:
    executor = FakePrefill(Clock())
    executor.proceed.set()
    cache = PrefixCache.of(LAYOUT, 10_000, resumable=True, snapshot_every=64)
    named = hash_prompt((1,) * 100, block_tokens=64, namespace=b"test")
    job = PrefillJob(request_id="r", prompt=(1,) * 100, blocks=named)
    async with PrefillEngine(executor, max_queue=8, clock=Clock(), cache=cache) as engine:
        first, second = await engine.run(job, ignore), await engine.run(job, ignore)
        assert (first.computed_tokens, first.cached_tokens) == (100, 0)
        assert (second.computed_tokens, second.cached_tokens) == (36, 64)
        assert engine.stats.tokens_total == 136


async def test_a_prompt_beyond_the_queue_is_refused_at_once() -> None:
    executor = FakePrefill(Clock())
    async with PrefillEngine(executor, max_queue=2, clock=Clock()) as engine, asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(engine.run(job(number), ignore))
            await settle()
        with pytest.raises(EngineError, match="2 prompts waiting"):
            await engine.run(job(9), ignore)
        executor.proceed.set()
    assert executor.order == [0, 1, 2]


async def test_who_was_submitted_first_is_served_first_whenever_its_order_came() -> None:
    executor = FakePrefill(Clock())
    async with PrefillEngine(executor, max_queue=8, clock=Clock()) as engine, asyncio.TaskGroup() as group:
        for number, submitted_at in ((0, 5.0), (1, 4.0), (2, 1.0), (3, 3.0)):
            group.create_task(engine.run(replace(job(number), submitted_at=submitted_at), ignore))
            await settle()
        executor.proceed.set()
    assert executor.order == [0, 2, 3, 1]


async def test_whoever_stops_waiting_gives_up_the_place_in_the_line() -> None:
    executor = FakePrefill(Clock())
    async with PrefillEngine(executor, max_queue=8, clock=Clock()) as engine, asyncio.TaskGroup() as group:
        group.create_task(engine.run(job(0), ignore))
        waiting = group.create_task(engine.run(job(1), ignore))
        group.create_task(engine.run(job(2), ignore))
        await settle()
        waiting.cancel()
        await settle()
        assert engine.stats.queued == 1
        executor.proceed.set()
    assert executor.order == [0, 2]


async def test_a_prompt_that_was_withdrawn_comes_back_to_its_place_even_before_a_full_queue() -> None:
    executor = FakePrefill(Clock())
    clock = Clock()
    async with PrefillEngine(executor, max_queue=3, clock=clock) as engine, asyncio.TaskGroup() as group:
        waiting = {}
        for number in range(4):
            clock.now = float(number)
            waiting[number] = group.create_task(outcome(engine.run(job(number), ignore)))
            await settle()
        engine.withdraw("r2")
        left = await waiting[2]
        assert isinstance(left, Withdrawn)
        assert left.since == 2.0
        assert engine.stats.queued == 2
        clock.now = 9.0
        group.create_task(engine.run(job(4), ignore))
        await settle()
        group.create_task(engine.run(replace(job(2), since=left.since), ignore))
        await settle()
        assert engine.stats.queued == 4
        executor.proceed.set()
    assert executor.order == [0, 1, 2, 3, 4]


async def test_a_prompt_that_has_begun_or_never_came_is_not_withdrawn() -> None:
    executor = FakePrefill(Clock())
    async with PrefillEngine(executor, max_queue=8, clock=Clock()) as engine:
        running = asyncio.ensure_future(engine.run(job(0), ignore))
        await settle()
        engine.withdraw("r0")
        engine.withdraw("r1")
        executor.proceed.set()
        assert (await running).first_token == 100
        assert (await engine.run(job(1), ignore)).first_token == 100


@pytest.mark.parametrize("withdrawn", [False, True])
async def test_who_is_cancelled_as_the_turn_comes_passes_it_on(withdrawn: bool) -> None:
    line = Line()
    await line.turn("a", 0.0)
    second, third = (asyncio.ensure_future(line.turn(name, at)) for name, at in (("b", 1.0), ("c", 2.0)))
    await settle()
    if withdrawn:
        line.withdraw("b")
    line.done()
    second.cancel()
    await settle()
    assert second.done()
    assert third.done()
    assert len(line) == 0
    line.done()
    await line.turn("d", 3.0)


async def test_a_running_prompt_that_is_cancelled_lets_the_next_one_run() -> None:
    executor = FakePrefill(Clock())
    async with PrefillEngine(executor, max_queue=8, clock=Clock()) as engine, asyncio.TaskGroup() as group:
        running = group.create_task(engine.run(job(0), ignore))
        await settle()
        running.cancel()
        await settle()
        assert engine.stats.running == 0
        executor.proceed.set()
        assert (await engine.run(job(1), ignore)).first_token == 100


async def test_a_failure_reaches_its_caller_and_nobody_else() -> None:
    executor = FakePrefill(Clock())
    executor.proceed.set()
    async with PrefillEngine(executor, max_queue=8, clock=Clock()) as engine:
        executor.failure = ValueError("out of memory")
        with pytest.raises(ValueError, match="out of memory"):
            await engine.run(job(0), ignore)
        executor.failure = None
        assert (await engine.run(job(1), ignore)).first_token == 100


async def test_a_closed_engine_refuses_and_those_in_line_are_told() -> None:
    executor = FakePrefill(Clock())
    engine = PrefillEngine(executor, max_queue=8, clock=Clock())
    async with asyncio.TaskGroup() as group:
        async with engine:
            first = group.create_task(engine.run(job(0), ignore))
            second = group.create_task(_outcome(engine))
            await settle()
        executor.proceed.set()
    assert first.done()
    assert "closed" in second.result()
    with pytest.raises(EngineError, match="closed"):
        await engine.run(job(2), ignore)


async def _outcome(engine: PrefillEngine) -> str:
    try:
        return str(await engine.run(job(1), ignore))
    except EngineError as error:
        return str(error)
