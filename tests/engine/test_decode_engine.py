"""Every request gets exactly its tokens, the batch keeps its bounds, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from fake_executors import LAYOUT, Clock, FakeDecode
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas_lab.engine.decode import DecodeEngine
from prfaas_lab.errors import EngineError
from prfaas_lab.model.buffers import IncomingCache
from prfaas_lab.workload.request import Sampling

PATIENCE_S = 60


@contextlib.asynccontextmanager
async def decoding(executor: FakeDecode, **limits: int) -> AsyncIterator[DecodeEngine]:
    settings = {"max_batch": 2, **limits}
    async with asyncio.timeout(PATIENCE_S), DecodeEngine(executor, clock=Clock(), **settings) as engine:
        yield engine


def fill(incoming: IncomingCache) -> None:
    for key in incoming.missing():
        incoming.arrived(key)


async def answer(
    engine: DecodeEngine, request_id: str, output_tokens: int, first_token: int = 10
) -> list[int]:
    fill(engine.reserve(request_id, 100, output_tokens))
    async with contextlib.aclosing(engine.generate(request_id, first_token)) as tokens:
        return [token async for some in tokens for token in some]


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


@settings(max_examples=40)
@given(outputs=st.lists(st.integers(1, 9), min_size=1, max_size=12), max_batch=st.integers(1, 4))
async def test_every_request_gets_exactly_its_tokens_within_the_batch(
    outputs: list[int], max_batch: int
) -> None:
    executor = FakeDecode()
    async with decoding(executor, max_batch=max_batch) as engine, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(answer(engine, f"r{i}", count, first_token=100 * i))
            for i, count in enumerate(outputs)
        ]
    for i, (task, count) in enumerate(zip(tasks, outputs, strict=True)):
        assert task.result() == list(range(100 * i, 100 * i + count))
    assert executor.widest <= max_batch
    assert executor.joined == [f"r{i}" for i in range(len(outputs))]
    assert (engine.reserved_bytes, engine.stats.running, engine.stats.queued) == (0, 0, 0)
    assert engine.stats.tokens_total == sum(outputs)


async def test_the_first_token_does_not_wait_for_a_step() -> None:
    executor, restored = FakeDecode(), []
    executor.proceed.clear()
    async with decoding(executor) as engine:
        fill(engine.reserve("r", 100, 3))
        tokens = engine.generate("r", 7, on_restored=lambda: restored.append(True))
        assert await anext(tokens) == (7,)
        assert restored == [True]
        executor.proceed.set()
        assert [some async for some in tokens] == [(8,), (9,)]


async def test_a_request_beyond_the_batch_waits_for_a_row() -> None:
    executor = FakeDecode()
    executor.proceed.clear()
    async with decoding(executor, max_batch=1) as engine, asyncio.TaskGroup() as group:
        first = group.create_task(answer(engine, "first", 5))
        second = group.create_task(answer(engine, "second", 5))
        await settle()
        assert (engine.stats.running, engine.stats.queued) == (1, 1)
        executor.proceed.set()
    assert len(first.result()) == len(second.result()) == 5


async def test_reservations_are_bounded_in_number_and_in_bytes() -> None:
    size = LAYOUT.request_bytes(100)
    async with decoding(FakeDecode(), max_batch=1, max_queue=1) as engine:
        engine.reserve("a", 100, 1)
        engine.reserve("b", 100, 1)
        with pytest.raises(EngineError, match="has 2 requests"):
            engine.reserve("c", 100, 1)
        engine.release("a")
        engine.reserve("c", 100, 1)
    async with decoding(FakeDecode(), max_reserved_bytes=2 * size) as engine:
        engine.reserve("a", 100, 1)
        assert engine.reserved_bytes == size
        with pytest.raises(EngineError, match="do not fit"):
            engine.reserve("b", 101, 1)


async def test_a_request_is_reserved_once_and_generates_once() -> None:
    async with decoding(FakeDecode()) as engine, asyncio.TaskGroup() as group:
        fill(engine.reserve("r", 100, 50))
        with pytest.raises(EngineError, match="already"):
            engine.reserve("r", 100, 1)
        group.create_task(_take_all(engine, "r"))
        await settle()
        with pytest.raises(EngineError, match="no such reservation"):
            await anext(engine.generate("r", 1))


async def _take_all(engine: DecodeEngine, request_id: str) -> None:
    async for _ in engine.generate(request_id, 1):
        pass


async def test_decoding_does_not_start_on_a_cache_with_a_hole() -> None:
    async with decoding(FakeDecode()) as engine:
        incoming = engine.reserve("r", 100, 2)
        for key in incoming.missing()[1:]:
            incoming.arrived(key)
        with pytest.raises(EngineError, match="lacks 1 segments"):
            await anext(engine.generate("r", 1))
        with pytest.raises(EngineError, match="no such reservation"):
            await anext(engine.generate("stranger", 1))


@pytest.mark.parametrize("taken", [1, 3])
async def test_whoever_leaves_frees_the_row_and_the_memory(taken: int) -> None:
    executor = FakeDecode()
    async with decoding(executor, max_batch=1) as engine:
        fill(engine.reserve("r", 100, 1000))
        async with contextlib.aclosing(engine.generate("r", 1)) as tokens:
            for _ in range(taken):
                await anext(tokens)
        assert engine.reserved_bytes == 0
        assert await answer(engine, "next", 3) == [10, 11, 12]
        await settle()
        assert executor.batch == {}


async def test_whoever_leaves_while_waiting_never_joins() -> None:
    executor = FakeDecode()
    executor.proceed.clear()
    async with decoding(executor, max_batch=1) as engine, asyncio.TaskGroup() as group:
        group.create_task(answer(engine, "first", 3))
        waiting = group.create_task(answer(engine, "second", 3))
        await settle()
        waiting.cancel()
        await settle()
        executor.proceed.set()
    assert executor.joined == ["first"]


async def test_a_failed_step_reaches_all_of_its_batch_and_the_engine_lives_on() -> None:
    executor = FakeDecode()
    executor.step_failure = ValueError("not a number")
    async with decoding(executor) as engine:
        results = await asyncio.gather(
            *(answer(engine, f"r{i}", 5) for i in range(2)), return_exceptions=True
        )
        assert all(isinstance(r, EngineError) and "not a number" in str(r) for r in results)
        executor.step_failure = None
        assert await answer(engine, "next", 3) == [10, 11, 12]


async def test_a_cache_that_cannot_be_restored_fails_its_request_alone() -> None:
    executor = FakeDecode()
    async with decoding(executor) as engine:
        executor.join_failure = ValueError("shapes differ")
        with pytest.raises(EngineError, match="restoring the KVCache failed"):
            await answer(engine, "bad", 5)
        executor.join_failure = None
        assert await answer(engine, "good", 2) == [10, 11]


async def test_closing_ends_whoever_still_waits() -> None:
    executor = FakeDecode()
    async with asyncio.TaskGroup() as group:
        async with decoding(executor, max_batch=1) as engine:
            tasks = [group.create_task(_failure(engine, f"r{i}")) for i in range(3)]
            await settle()
        assert executor.closed
    assert all("closed" in task.result() for task in tasks)
    with pytest.raises(EngineError, match="closed"):
        engine.reserve("late", 100, 1)


async def _failure(engine: DecodeEngine, request_id: str) -> str:
    try:
        return str(await answer(engine, request_id, 10**6))
    except EngineError as error:
        return str(error)


async def test_an_error_of_the_caller_is_not_wrapped_in_a_group() -> None:
    async def failing() -> None:
        async with decoding(FakeDecode()):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await failing()


async def test_busy_time_and_tokens_add_up() -> None:
    clock, executor = Clock(), FakeDecode()
    async with DecodeEngine(executor, max_batch=1, clock=clock) as engine:
        executor.proceed.clear()
        task = asyncio.ensure_future(answer(engine, "r", 2))
        await settle()
        clock.now = 3.0
        assert engine.stats.busy_s == 3.0
        executor.proceed.set()
        assert await task == [10, 11]
        clock.now = 9.0
        assert (engine.stats.busy_s, engine.stats.tokens_total) == (3.0, 2)


async def test_an_id_is_not_taken_again_while_its_first_sequence_still_decodes() -> None:
    executor = FakeDecode()
    executor.proceed.clear()
    async with decoding(executor) as engine:
        fill(engine.reserve("r", 100, 5))
        tokens = engine.generate("r", 1)
        await anext(tokens)
        await tokens.aclose()
        with pytest.raises(EngineError, match="already"):
            engine.reserve("r", 100, 5)
        executor.proceed.set()
        await settle()
        assert await answer(engine, "r", 2) == [10, 11]


async def test_a_stop_id_ends_the_output_and_frees_the_row_for_the_next() -> None:
    executor = FakeDecode()
    async with decoding(executor, max_batch=1) as engine:
        fill(engine.reserve("r", 100, 1000, Sampling(stop_ids=(13, 99))))
        async with contextlib.aclosing(engine.generate("r", 10)) as tokens:
            assert [token async for some in tokens for token in some] == [10, 11, 12, 13]
        await settle()
        assert executor.batch == {}
        assert engine.reserved_bytes == 0


async def test_a_stop_id_may_be_the_first_token() -> None:
    async with decoding(FakeDecode()) as engine:
        fill(engine.reserve("r", 100, 5, Sampling(stop_ids=(10,))))
        async with contextlib.aclosing(engine.generate("r", 10)) as tokens:
            assert [token async for some in tokens for token in some] == [10]
