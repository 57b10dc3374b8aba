"""Claims about the virtual clock."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.lab.virtual_time import Deadlock, run_virtual


def test_an_hour_passes_at_once_and_exactly() -> None:
    async def sleep() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(3600)
        return loop.time()

    started = time.monotonic()
    assert run_virtual(sleep()) == pytest.approx(3600, abs=1e-9)
    assert time.monotonic() - started < 5


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_timers_fire_in_order_of_their_time(delays_s: list[float]) -> None:
    async def race() -> list[float]:
        woken: list[float] = []

        async def wake(delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            woken.append(delay_s)

        await asyncio.gather(*map(wake, delays_s))
        return woken

    assert run_virtual(race()) == sorted(delays_s)


def test_a_timeout_ends_a_wait_that_nothing_else_would() -> None:
    async def wait() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run_virtual(wait()) == pytest.approx(10)


def test_a_deadlock_is_an_error_that_names_who_waits() -> None:
    async def stuck() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait(), name="the one that waits")

    with pytest.raises(Deadlock, match="the one that waits"):
        run_virtual(stuck())


def test_timers_of_one_instant_fire_in_the_order_they_were_made() -> None:
    async def race() -> list[int]:
        woken: list[int] = []
        for number in range(20):
            asyncio.get_running_loop().call_at(1.0, woken.append, number)
        await asyncio.sleep(2)
        return woken

    assert run_virtual(race()) == list(range(20))


def test_a_timer_that_was_cancelled_never_fires_and_does_not_pile_up() -> None:
    async def cancel() -> tuple[list[int], int]:
        loop, woken = asyncio.get_running_loop(), []
        for number in range(10_000):
            loop.call_later(1e6, woken.append, number).cancel()
            await asyncio.sleep(0.001)
        return woken, len(loop._timers)  # type: ignore[attr-defined]

    woken, timers = run_virtual(cancel())
    assert not woken
    assert timers < 1000


def test_what_still_waits_at_the_end_is_freed_without_a_collection() -> None:
    class Waiting:
        def __init__(self) -> None:
            self.timer = asyncio.get_running_loop().call_later(1, self.happen)

        def happen(self) -> None:
            raise AssertionError("the run was over before")

    async def leave() -> weakref.ref[Waiting]:
        return weakref.ref(Waiting())

    gc.disable()
    try:
        assert run_virtual(leave())() is None
    finally:
        gc.enable()


def test_a_callback_that_raises_ends_the_run() -> None:
    async def wait() -> None:
        asyncio.get_running_loop().call_later(1, [].pop)
        await asyncio.sleep(10)

    with pytest.raises(IndexError):
        run_virtual(wait())
