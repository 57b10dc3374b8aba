"""Claims about copies between simulated caches while they are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from prfaas_lab.engine.prefix_cache import pool_of
from prfaas_lab.engine.sized_cache import SizedCache
from prfaas_lab.kvcache import Geometry, Prompt, hash_prompt
from prfaas_lab.lab.cache_copies import CacheCopies
from prfaas_lab.lab.simulated_cache import CopyLandings, SimulatedCache
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.metrics.events import Noted
from prfaas_lab.metrics.ledger import Ledger

GEOMETRY = Geometry(block_tokens=4, block_bytes=40, snapshot_bytes=100)
PROMPT = hash_prompt(range(17), block_tokens=4, namespace=b"run")
WEIGHT = 4 * 40 + 100


class Wire:
    """A network on which everything takes two seconds."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def send(
        self, source: str, host: str, pieces: list[tuple[float, int]], arrived: Callable[..., None]
    ) -> Any:
        self.sent.append(sum(size for _, size in pieces))
        return SimpleNamespace(cancel=asyncio.get_running_loop().call_later(2.0, arrived, 0.0).cancel)


class Lab:
    """An engine that holds a prefix, and one that is to get a copy of it."""

    def __init__(self, room_bytes: int = WEIGHT) -> None:
        self.wire, landings = Wire(), CopyLandings()
        self.ledger = Ledger(asyncio.get_running_loop().time, 0.0)
        self.in_vain: list[Prompt] = []
        pools = [pool_of(GEOMETRY, budget, resumable=True) for budget in (WEIGHT, room_bytes)]
        self.here, self.there = (SizedCache(pool, state_bytes=100) for pool in pools)
        self.here.keep(PROMPT, 0, (16,))
        self.source, self.target = (
            SimulatedCache("any", cache, self.wire, landings)  # type: ignore[arg-type]
            for cache in (self.here, self.there)
        )

    async def copy(self) -> bool:
        engines = {
            name: SimpleNamespace(client=SimpleNamespace(stages=lambda _, order, at=at: at.stages(order)))
            for name, at in (("here", self.source), ("there", self.target))
        }
        network = SimpleNamespace(data_address=lambda *_: ("there", 1))
        caches = SimpleNamespace(
            learn=lambda *_: None,
            usable_tokens=lambda *_: 16,
            copied_in_vain=lambda prefix, *_: self.in_vain.append(prefix),
        )
        copies = CacheCopies(engines, network, caches, self.ledger)  # type: ignore[arg-type]
        return await copies.copy(PROMPT, "here", "there", reason="a test")

    @property
    def pinned_bytes(self) -> tuple[int, int]:
        return self.here.pool.stats().pinned_bytes, self.there.pool.stats().pinned_bytes


def test_it_is_on_the_budget_of_both_ends_until_it_is_there() -> None:
    async def main() -> None:
        lab = Lab()
        copying = asyncio.ensure_future(lab.copy())
        await asyncio.sleep(1.0)
        assert lab.pinned_bytes == (WEIGHT, WEIGHT)
        assert lab.here.in_transit(0) is None, "what is being sent is not evicted"
        assert await copying
        assert lab.there.find(PROMPT) == (16, 0)
        assert (lab.pinned_bytes, lab.in_vain) == ((0, 0), [])
        for cache in (lab.here, lab.there):
            cache.pool.check()

    run_virtual(main())


def test_only_what_is_lacking_takes_room_and_what_it_goes_on_from_stays() -> None:
    async def main() -> None:
        lab = Lab()
        lab.there.keep(PROMPT.beginning(3), 0, ())
        copying = asyncio.ensure_future(lab.copy())
        await asyncio.sleep(1.0)
        assert lab.wire.sent == [40 + 100]
        assert lab.pinned_bytes == (WEIGHT, WEIGHT)
        assert lab.there.pool.stats().transfer_peak_bytes == 40 + 100
        assert await copying
        assert lab.there.find(PROMPT) == (16, 0)

    run_virtual(main())


def test_one_that_finds_no_room_is_not_sent() -> None:
    async def main() -> None:
        lab = Lab(WEIGHT - 1)
        said: list[str] = []
        lab.ledger.subscribe(lambda event: said.append(event.text) if isinstance(event, Noted) else None)
        assert not await lab.copy()
        assert "no room for a transfer" in said[0]
        assert lab.in_vain == [PROMPT.beginning(4)]
        assert (lab.wire.sent, lab.pinned_bytes) == ([], (0, 0))
        assert lab.there.pool.stats().transfers_refused == 1

    run_virtual(main())


def test_one_that_is_given_up_takes_room_no_longer() -> None:
    async def main() -> None:
        lab = Lab()
        copying = asyncio.ensure_future(lab.copy())
        await asyncio.sleep(1.0)
        copying.cancel()
        await asyncio.sleep(5.0)
        assert lab.pinned_bytes == (0, 0)
        assert lab.there.find(PROMPT) == (0, 0)

    run_virtual(main())
