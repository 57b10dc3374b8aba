"""Claims about engines that share cores, on virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from prfaas_lab.engine.analytic import AnalyticDecode, AnalyticPrefill, Job, Sequence
from prfaas_lab.engine.cores import Cores, share
from prfaas_lab.lab.virtual_time import run_virtual

T = TypeVar("T")


def on(cores: float, main: Callable[[Cores], Awaitable[T]]) -> T:
    async def run() -> T:
        return await main(Cores(cores))

    return run_virtual(run())


class TimedJob(Job):
    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.times: asyncio.Future[tuple[float, float]] = asyncio.get_running_loop().create_future()

    def on_computed(self, started_at: float, finished_at: float) -> None:
        self.times.set_result((started_at, finished_at))


class TimedSequence(Sequence):
    def __init__(self, output_tokens: int) -> None:
        super().__init__(output_tokens)
        self.stamps: list[float] = []

    def on_first(self, at: float) -> None:
        self.stamps.append(at)

    def on_last(self, at: float) -> None:
        self.stamps.append(at)


def prefill_on(cores: Cores) -> AnalyticPrefill:
    """A second for every token."""
    return AnalyticPrefill(lambda tokens, cached: tokens, max_queue=8, clock=cores)


def decode_on(cores: Cores, *, restore_s: float = 0.0) -> AnalyticDecode:
    """A second for every step."""
    return AnalyticDecode(lambda batch: 1.0, max_batch=8, max_queue=8, restore_s=restore_s, clock=cores)


def put(engine: AnalyticPrefill, tokens: int) -> TimedJob:
    job = TimedJob(tokens)
    engine.join(job)
    return job


def test_nobody_has_more_than_a_core_and_all_together_have_what_there_is() -> None:
    for cores, computing in itertools.product((0.8, 1, 1.8, 2, 7.5), range(1, 12)):
        had = share(cores, computing)
        assert 0 < had <= 1
        assert had * computing == pytest.approx(min(cores, computing))


def test_alone_on_a_core_an_engine_takes_what_its_profile_says() -> None:
    async def main(cores: Cores) -> tuple[float, float]:
        await asyncio.sleep(2.0)
        return await put(prefill_on(cores), 3).times

    assert on(1, main) == (2.0, 5.0)


def test_two_on_one_core_take_twice_as_long_until_one_is_done() -> None:
    async def main(cores: Cores) -> list[tuple[float, float]]:
        one, other = put(prefill_on(cores), 2), put(prefill_on(cores), 5)
        return await asyncio.gather(one.times, other.times)

    assert on(1, main) == [(0.0, pytest.approx(4.0)), (0.0, pytest.approx(7.0))]


def test_who_decodes_and_who_prefills_are_slowed_alike() -> None:
    async def main(cores: Cores) -> tuple[tuple[float, float], list[float]]:
        prompt, answer = put(prefill_on(cores), 3), TimedSequence(4)
        decode_on(cores).join(answer)
        await asyncio.sleep(20.0)
        return await prompt.times, answer.stamps

    assert on(1.5, main) == ((0.0, pytest.approx(4.0)), [0.0, pytest.approx(4.0)])


def test_who_comes_later_slows_what_is_under_way() -> None:
    async def main(cores: Cores) -> list[tuple[float, float]]:
        first = put(prefill_on(cores), 3)
        await asyncio.sleep(1.0)
        second = put(prefill_on(cores), 1)
        return await asyncio.gather(first.times, second.times)

    assert on(1, main) == [(0.0, pytest.approx(4.0)), (1.0, pytest.approx(3.0))]


def test_a_prompt_that_is_given_up_leaves_its_share_to_the_others() -> None:
    async def main(cores: Cores) -> tuple[float, float]:
        engine = prefill_on(cores)
        gone, kept = put(engine, 9), put(prefill_on(cores), 3)
        await asyncio.sleep(2.0)
        engine.leave(gone)
        return await kept.times

    assert on(1, main) == (0.0, pytest.approx(4.0))


def test_who_follows_an_engine_takes_nothing_from_it() -> None:
    async def main(cores: Cores) -> tuple[float, tuple[float, float]]:
        loop, heard = asyncio.get_running_loop(), list[float]()
        job = put(prefill_on(cores), 4)
        put(prefill_on(cores), 4)
        cores.tell_at(2.0, lambda: heard.append(loop.time()))
        return (await job.times)[1], tuple(heard)  # type: ignore[return-value]

    finished_at, heard = on(1, main)
    assert (finished_at, heard) == (pytest.approx(8.0), (pytest.approx(4.0),))


def test_steps_are_told_of_in_the_loops_time_however_the_clock_runs() -> None:
    """One step alone, one at half the pace while another engine decodes, and two alone again."""

    async def main(cores: Cores) -> tuple[list[float], list[float]]:
        long, short = TimedSequence(5), TimedSequence(2)
        decode_on(cores).join(long)
        await asyncio.sleep(1.0)
        decode_on(cores).join(short)
        await asyncio.sleep(20.0)
        return long.stamps, short.stamps

    assert on(1, main) == ([0.0, pytest.approx(5.0)], [1.0, pytest.approx(3.0)])


def test_a_cache_is_restored_before_its_first_token_and_meanwhile_nobody_gets_any() -> None:
    async def main(cores: Cores) -> list[list[float]]:
        engine = decode_on(cores, restore_s=0.25)
        first, second, third = TimedSequence(4), TimedSequence(2), TimedSequence(1)
        engine.join(first)
        await asyncio.sleep(0.5)
        engine.join(second)
        engine.join(third)
        await asyncio.sleep(20.0)
        return [first.stamps, second.stamps, third.stamps]

    first, second, third = on(2, main)
    assert first == pytest.approx([0.25, 0.25 + 3 * 1.0 + 2 * 0.25])
    assert second == pytest.approx([1.25 + 0.25, 1.25 + 2 * 0.25 + 1.0])
    assert third == pytest.approx([1.25 + 2 * 0.25] * 2)


def test_who_was_given_up_is_not_restored() -> None:
    async def main(cores: Cores) -> list[float]:
        engine = decode_on(cores, restore_s=0.5)
        first, gone, last = TimedSequence(3), TimedSequence(3), TimedSequence(3)
        engine.join(first)
        await asyncio.sleep(0.1)
        engine.join(gone)
        engine.join(last)
        engine.leave(gone)
        await asyncio.sleep(20.0)
        assert (engine.stats.queued, engine.stats.running) == (0, 0)
        assert not gone.stamps
        return last.stamps

    assert on(1, main) == pytest.approx([1.0, 3.0])


def test_an_engine_that_restores_is_busy() -> None:
    async def main(cores: Cores) -> float:
        engine = decode_on(cores, restore_s=0.5)
        engine.join(TimedSequence(1))
        await asyncio.sleep(0.25)
        half = engine.stats.busy_s
        await asyncio.sleep(5.0)
        assert half == pytest.approx(0.25)
        return engine.stats.busy_s

    assert on(1, main) == pytest.approx(0.5)


def test_an_engine_is_busy_also_while_another_has_the_core() -> None:
    async def main(cores: Cores) -> list[float]:
        one, other = decode_on(cores), decode_on(cores)
        one.join(TimedSequence(3))
        other.join(TimedSequence(3))
        await asyncio.sleep(3.0)
        during = one.stats.busy_s
        await asyncio.sleep(20.0)
        return [during, one.stats.busy_s, other.stats.busy_s]

    assert on(1, main) == pytest.approx([3.0, 4.0, 4.0])
