"""Claims about engines that only reckon, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from prfaas_lab.engine.analytic import AnalyticDecode, AnalyticPrefill, Job, Sequence
from prfaas_lab.errors import EngineError
from prfaas_lab.lab.virtual_time import run_virtual


def at(at_s: float, work: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
    async def later() -> Any:
        await asyncio.sleep(at_s)
        return await work

    return later()


class AwaitedJob(Job):
    def __init__(self, tokens: int, since: float | None = None) -> None:
        super().__init__(tokens, since)
        self.times: asyncio.Future[tuple[float, float]] = asyncio.get_running_loop().create_future()

    def on_computed(self, started_at: float, finished_at: float) -> None:
        self.times.set_result((started_at, finished_at))


class AwaitedSequence(Sequence):
    def __init__(self, output_tokens: int) -> None:
        super().__init__(output_tokens)
        loop = asyncio.get_running_loop()
        self.first, self.last = loop.create_future(), loop.create_future()

    def on_first(self, at: float) -> None:
        self.first.set_result(at)

    def on_last(self, at: float) -> None:
        self.last.set_result(at)


async def computed(engine: AnalyticPrefill, tokens: int) -> tuple[float, float]:
    job = AwaitedJob(tokens)
    engine.join(job)
    try:
        return await job.times
    finally:
        engine.leave(job)


async def decoded(engine: AnalyticDecode, tokens: int) -> tuple[float, float]:
    sequence = AwaitedSequence(tokens)
    engine.join(sequence)
    return await sequence.first, await sequence.last


def test_prompts_are_computed_one_after_the_other_in_the_order_they_came() -> None:
    async def main() -> list[tuple[float, float]]:
        engine = AnalyticPrefill(lambda tokens, cached: tokens / 100, max_queue=8)
        return await asyncio.gather(
            at(0.0, computed(engine, 200)),
            at(0.5, computed(engine, 100)),
            at(9.0, computed(engine, 100)),
        )

    assert run_virtual(main()) == [(0.0, 2.0), (2.0, 3.0), (9.0, 10.0)]


def test_a_full_prefill_queue_refuses() -> None:
    async def main() -> None:
        engine = AnalyticPrefill(lambda tokens, cached: 1.0, max_queue=1)
        async with asyncio.TaskGroup() as group:
            group.create_task(computed(engine, 1))
            group.create_task(computed(engine, 1))
            with pytest.raises(EngineError, match="1 prompts waiting"):
                await at(0.5, computed(engine, 1))

    run_virtual(main())


def test_a_prompt_that_is_given_up_makes_room_for_the_next() -> None:
    async def main() -> tuple[float, float]:
        engine = AnalyticPrefill(lambda tokens, cached: float(tokens), max_queue=8)
        first = asyncio.ensure_future(computed(engine, 10))
        second = asyncio.ensure_future(computed(engine, 10))
        third = asyncio.ensure_future(computed(engine, 1))
        await asyncio.sleep(3.0)
        second.cancel()
        first.cancel()
        await asyncio.wait([first, second])
        return await third

    assert run_virtual(main()) == (3.0, 4.0)


def test_the_first_token_comes_as_the_sequence_joins_and_one_more_a_step() -> None:
    async def main() -> tuple[float, float]:
        engine = AnalyticDecode(lambda batch: 0.1, max_batch=4, max_queue=4)
        return await at(1.0, decoded(engine, 11))

    assert run_virtual(main()) == (1.0, pytest.approx(2.0))


def test_who_comes_within_a_step_joins_at_its_end() -> None:
    async def main() -> tuple[float, float]:
        engine = AnalyticDecode(lambda batch: 1.0, max_batch=4, max_queue=4)
        _, late = await asyncio.gather(decoded(engine, 10), at(2.25, decoded(engine, 2)))
        return late

    assert run_virtual(main()) == (pytest.approx(3.0), pytest.approx(4.0))


def test_steps_take_as_long_as_the_batch_of_the_moment_says() -> None:
    """Alone for 2 steps of 1 s; then two together at 2 s a step until the shorter has its 3 tokens."""

    async def main() -> list[tuple[float, float]]:
        engine = AnalyticDecode(float, max_batch=4, max_queue=4)
        return await asyncio.gather(decoded(engine, 7), at(1.5, decoded(engine, 3)))

    (_, long_s), (first_s, short_s) = run_virtual(main())
    assert (first_s, short_s, long_s) == (2.0, 6.0, 8.0)


def test_who_finds_the_batch_full_waits_for_a_place() -> None:
    async def main() -> list[tuple[float, float]]:
        engine = AnalyticDecode(lambda batch: 1.0, max_batch=1, max_queue=4)
        return await asyncio.gather(decoded(engine, 5), decoded(engine, 3))

    assert run_virtual(main()) == [(0.0, 4.0), (4.0, 6.0)]


def test_a_sequence_that_is_given_up_frees_its_place_after_the_step_under_way() -> None:
    async def main() -> tuple[float, float]:
        engine = AnalyticDecode(lambda batch: 1.0, max_batch=1, max_queue=4)
        gone = Sequence(100)
        engine.join(gone)
        asyncio.get_running_loop().call_at(2.5, engine.leave, gone)
        return await at(1.0, decoded(engine, 2))

    assert run_virtual(main()) == (3.0, 4.0)


def test_who_joins_while_the_last_step_of_one_that_gave_up_is_under_way_gets_its_tokens_in_time() -> None:
    async def main() -> tuple[float, float]:
        engine = AnalyticDecode(lambda batch: 1.0, max_batch=4, max_queue=4)
        gone = Sequence(100)
        engine.join(gone)
        asyncio.get_running_loop().call_at(10.25, engine.leave, gone)
        return await at(10.5, decoded(engine, 5))

    assert run_virtual(main()) == (11.0, 15.0)


def test_tokens_and_busy_time_add_up() -> None:
    async def main() -> tuple[int, float]:
        engine = AnalyticDecode(lambda batch: 0.5, max_batch=3, max_queue=100)
        await asyncio.gather(*(at(0.3 * n, decoded(engine, n + 1)) for n in range(20)))
        return engine.stats.tokens_total, engine.stats.busy_s

    tokens, busy_s = run_virtual(main())
    assert tokens == sum(range(1, 21))
    assert busy_s == pytest.approx(0.5 * round(busy_s / 0.5))


def test_a_waiting_prompt_is_given_back_and_returns_to_its_place_here_or_elsewhere() -> None:
    async def run() -> list[tuple[float, float]]:
        engine, other = (AnalyticPrefill(lambda tokens, cached: tokens, max_queue=2) for _ in range(2))
        jobs = [AwaitedJob(tokens) for tokens in (10, 1, 2)]
        for job in jobs:
            engine.join(job)
            await asyncio.sleep(1.0)
        assert [engine.withdraw(job) for job in jobs] == [False, True, True]
        assert engine.withdraw(jobs[1]) is False
        assert engine.stats.queued == 0
        for each in (engine, other):
            for tokens in (20, 4):  # later in line; the first engine's is full with them
                each.join(AwaitedJob(tokens))
        back = [AwaitedJob(job.tokens, job.since) for job in jobs[1:]]
        other.join(back[0])
        engine.join(back[1])
        return [await job.times for job in back]

    assert run_virtual(run()) == [(23.0, 24.0), (10.0, 12.0)]


def test_a_prompt_that_was_refused_leaves_no_room_behind() -> None:
    async def run() -> int:
        engine = AnalyticPrefill(lambda tokens, cached: 100.0, max_queue=2)
        jobs = [AwaitedJob(1) for _ in range(6)]
        for job in jobs:
            try:
                engine.join(job)
            except EngineError:
                engine.leave(job)
        return engine.stats.queued

    assert run_virtual(run()) == 2


def test_who_was_submitted_first_is_computed_first_whenever_it_joins() -> None:
    async def run() -> list[float]:
        engine = AnalyticPrefill(lambda tokens, cached: 1.0, max_queue=8)
        jobs = []
        for submitted_at in (5.0, 4.0, 1.0, 3.0):
            job = AwaitedJob(1)
            job.submitted_at = submitted_at
            jobs.append(job)
            engine.join(job)
        return [(await job.times)[0] for job in jobs]

    assert run_virtual(run()) == [0.0, 3.0, 1.0, 2.0]
