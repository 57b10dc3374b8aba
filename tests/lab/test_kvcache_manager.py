"""Claims about what the controller knows of the engines' caches, from what they tell."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from prfaas_lab.kvcache import FUTILE_S, Geometry, Pool
from prfaas_lab.lab.cache_news import PromptNames, news_of
from prfaas_lab.lab.engines import Engine
from prfaas_lab.lab.kvcache_manager import KVCacheManager
from prfaas_lab.lab.replication import INTERVAL_S, advised, engines_for, replicate, tokens_of
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.router import DatacenterView, PathView, View

GEOMETRY = Geometry(block_tokens=4, block_bytes=40, snapshot_bytes=100)
TOKENS = tuple(range(19))


class Lab:
    """Two datacenters with a pool at each engine, and a manager that hears of them."""

    def __init__(self) -> None:
        places = {
            "east-p0": ("east", "prefill"),
            "west-p0": ("west", "prefill"),
            "west-d0": ("west", "decode"),
        }
        self.engines = {
            name: Engine(name=name, datacenter=dc, role=role, client=None, capacity=1)  # type: ignore[arg-type]
            for name, (dc, role) in places.items()
        }
        self.ledger = Ledger(lambda: 0.0, 0.0)
        self.manager = KVCacheManager(GEOMETRY, self.engines, namespace=b"run", ledger=self.ledger)
        self.pools = {name: Pool(self.geometry(name), 10_000) for name in self.engines}
        self.prompt = self.manager.name(TOKENS)

    def geometry(self, name: str) -> Geometry:
        state = 0 if name == "west-d0" else GEOMETRY.snapshot_bytes
        return Geometry(block_tokens=4, block_bytes=40, snapshot_bytes=state)

    def put(self, name: str, blocks: int, *, state: bool = True) -> None:
        snapshots = {4 * blocks: None} if state else {}
        self.pools[name].insert(self.prompt, dict.fromkeys(range(0, 4 * blocks, 4)), snapshots)

    def news(self, name: str) -> dict[str, Any]:
        engine = self.engines[name]
        return news_of(self.pools[name], in_full=self.manager.wants_all(engine))

    def tell(self, name: str) -> None:
        engine = self.engines[name]
        self.manager.learn(engine, engine.role, self.news(name))

    def view(self) -> View:
        sites = (DatacenterView(name="east", role="prfaas"), DatacenterView(name="west", role="local"))
        seen = View(datacenters=sites, engines=tuple(engine.view for engine in self.engines.values()))
        return self.manager.matched(seen, self.prompt)

    def held(self) -> dict[str, int]:
        seen = self.view()
        return {each.name: each.prefix_tokens for each in (*seen.datacenters, *seen.engines)}


def test_a_view_says_what_each_datacenter_and_engine_holds_of_the_prompt() -> None:
    lab = Lab()
    lab.put("east-p0", 4)
    lab.put("west-p0", 2)
    lab.put("west-d0", 3, state=False)
    for name in lab.engines:
        lab.tell(name)
    assert lab.held() == {"east": 16, "west": 8, "east-p0": 16, "west-p0": 8, "west-d0": 12}


def test_lost_news_makes_the_next_news_complete() -> None:
    lab = Lab()
    lab.put("east-p0", 1)
    lab.tell("east-p0")
    lab.put("east-p0", 2)
    lab.news("east-p0")  # lost on the way
    lab.put("east-p0", 4)
    lab.tell("east-p0")
    assert lab.manager.wants_all(lab.engines["east-p0"])
    assert lab.held()["east-p0"] == 4
    lab.tell("east-p0")
    assert not lab.manager.wants_all(lab.engines["east-p0"])
    assert lab.held()["east-p0"] == 16


def test_a_dead_engine_holds_nothing() -> None:
    lab = Lab()
    lab.put("east-p0", 4)
    lab.tell("east-p0")
    lab.engines["east-p0"].alive = False
    assert lab.held()["east"] == 0


def test_an_engine_in_another_role_holds_what_the_pool_of_that_role_does() -> None:
    lab = Lab()
    lab.put("west-p0", 4)
    lab.tell("west-p0")
    lab.engines["west-p0"].become("decode")
    assert (lab.held()["west"], lab.held()["west-p0"]) == (0, 0)
    lab.engines["west-p0"].become("prefill")
    lab.tell("west-p0")
    assert lab.manager.wants_all(lab.engines["west-p0"])
    lab.tell("west-p0")
    assert (lab.held()["west"], lab.held()["west-p0"]) == (16, 16)


def test_late_news_of_one_role_are_not_taken_for_the_pool_of_the_other() -> None:
    lab = Lab()
    engine, decoding = lab.engines["west-p0"], Pool(lab.geometry("west-d0"), 10_000)
    engine.become("decode")
    lab.put("west-p0", 1)
    lab.manager.learn(engine, "prefill", lab.news("west-p0"))
    assert lab.held()["west-p0"] == 0
    decoding.insert(lab.prompt, {0: None, 4: None}, {})
    lab.manager.learn(engine, "decode", news_of(decoding, in_full=False))
    assert (lab.held()["west-p0"], lab.held()["west"]) == (8, 0)
    assert lab.ledger.tally.caches.report({"west-p0": "west"})["blocks"] == 1 + 2


def test_names_cross_as_text_and_come_back() -> None:
    prompt = Lab().prompt
    assert PromptNames.model_validate_json(PromptNames.of(prompt).model_dump_json()).prompt() == prompt


def wanted_elsewhere() -> tuple[Lab, PathView, View]:
    """A prefix that the west has and the east asks for, over an idle link."""
    lab = Lab()
    lab.put("west-p0", 4)
    lab.tell("west-p0")
    for _ in range(5):
        lab.manager.asked(lab.prompt, "east-p0")
    for engine in lab.engines.values():
        engine.computed_tokens, engine.computing_s = 1000, 10.0
        engine.changed()
    way = PathView(source="west", destination="east", rate_bps=1e6, rtt_s=0.01)
    return lab, way, replace(lab.view(), paths=(way,))


@pytest.mark.parametrize(
    ("finds_room", "made_at"), [(True, [INTERVAL_S]), (False, [INTERVAL_S, INTERVAL_S + FUTILE_S])]
)
def test_a_copy_that_finds_no_room_is_not_made_over_and_over(finds_room: bool, made_at: list[float]) -> None:
    lab, _, idle = wanted_elsewhere()
    made: list[float] = []

    class Copies:
        async def copy(self, *_: object, **__: object) -> bool:
            made.append(asyncio.get_running_loop().time())
            if finds_room:
                lab.put("east-p0", 4)
                lab.tell("east-p0")
            return True

    async def main() -> None:
        ledger = Ledger(asyncio.get_running_loop().time, 0.0)
        async with asyncio.timeout(1.5 * FUTILE_S):
            await replicate(lab.manager, Copies(), lambda: idle, ledger)  # type: ignore[arg-type]

    with pytest.raises(TimeoutError):
        run_virtual(main())
    assert made == made_at


def test_a_prefix_that_is_hot_elsewhere_is_advised_over_a_link_with_room() -> None:
    lab, way, idle = wanted_elsewhere()
    (advice, *_) = advised(lab.manager, idle, 0.0)
    assert (advice.source, advice.destination, tokens_of(advice.prompt)) == ("west", "east", 16)
    assert engines_for(lab.manager, advice, idle) == ("west-p0", "east-p0")
    assert not advised(lab.manager, replace(lab.view(), paths=(replace(way, up=False),)), 0.0)
    assert not advised(lab.manager, replace(lab.view(), paths=(replace(way, utilization=0.9),)), 0.0)
    assert not advised(lab.manager, lab.view(), 0.0)
    lab.put("east-p0", 4)
    lab.tell("east-p0")
    assert not advised(lab.manager, idle, 0.0)


def test_a_copy_that_came_to_nothing_is_in_the_views_of_what_begins_alike() -> None:
    lab = Lab()
    lab.put("west-p0", 4)
    lab.tell("west-p0")
    west, east = lab.engines["west-p0"], lab.engines["east-p0"]
    assert lab.manager.usable_tokens(lab.prompt, west) == 16
    assert lab.manager.usable_tokens(lab.prompt, east) == 0
    lab.manager.copied_in_vain(lab.prompt.beginning(4), west, east)
    seen = lab.view()
    assert seen.cache is not None
    assert seen.cache.futile == {("west-p0", "east-p0")}
    other = lab.manager.matched(seen, lab.manager.name([99, *TOKENS]))
    assert other.cache is not None
    assert not other.cache.futile
    lab.manager.copied_in_vain(lab.prompt.beginning(0), west, east)  # its source held nothing after all
