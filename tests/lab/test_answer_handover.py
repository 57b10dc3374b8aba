"""Claims about which answers are handed to whom, and what of a datacenter's cache an engine gets."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from prfaas_lab.kvcache import Geometry, Pool, Prompt
from prfaas_lab.lab.answers import Answers
from prfaas_lab.lab.cache_copies import Answer
from prfaas_lab.lab.cache_news import news_of
from prfaas_lab.lab.cache_share import cache_share
from prfaas_lab.lab.engines import Engine
from prfaas_lab.lab.kvcache_manager import KVCacheManager
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.spec.scenario import Resolved, Scenario
from prfaas_lab.spec.topology import Topology
from prfaas_lab.workload.request import Request

GEOMETRY = Geometry(block_tokens=4, block_bytes=40, snapshot_bytes=100)
ENGINES = {"east-p0": "prefill", "west-p0": "prefill", "west-p1": "prefill", "west-d0": "decode"}


@dataclass
class FakeCopies:
    """Takes down what it was asked to copy."""

    done: list[tuple[Prompt, str, str, Answer]] = field(default_factory=list)

    async def copy(
        self, prompt: Prompt, source: str, destination: str, *, reason: str, answer: Answer
    ) -> bool:
        self.done.append((prompt, source, destination, answer))
        return True


class Lab:
    """A decode engine, two prefill engines beside it, and one elsewhere."""

    def __init__(self, keeps: tuple[str, ...] = ("west",)) -> None:
        self.engines = {
            name: Engine(name=name, datacenter=name[:4], role=role, client=None, capacity=1)  # type: ignore[arg-type]
            for name, role in ENGINES.items()
        }
        ledger = Ledger(lambda: 0.0, 0.0)
        self.manager = KVCacheManager(GEOMETRY, self.engines, namespace=b"run", ledger=ledger)
        self.copies = FakeCopies()
        self.answers = Answers(self.engines, self.manager, self.copies, datacenters=keeps)  # type: ignore[arg-type]

    def offer(
        self, prompt_tokens: int, answer_tokens: int, prefill: str = "west-p1", name: str = "r"
    ) -> None:
        ids = tuple(range(prompt_tokens))
        request = Request(id=name, arrival_s=0.0, prompt=ids, output_tokens=answer_tokens)
        said = range(100, 100 + answer_tokens)
        self.answers.offer(request, self.manager.name(ids), said, prefill=prefill, decode="west-d0")

    async def handed_over(self) -> list[tuple[Prompt, str, str, Answer]]:
        running = asyncio.create_task(self.answers.run())
        for _ in range(200):
            await asyncio.sleep(0)
        running.cancel()
        return self.copies.done


async def test_an_answer_is_named_as_far_as_it_was_computed() -> None:
    lab = Lab()
    lab.offer(10, 7)  # 16 tokens are computed on, the 17th was only chosen
    ((prompt, source, destination, answer),) = await lab.handed_over()
    assert prompt == lab.manager.name([*range(10), *range(100, 107)])
    assert (len(prompt.blocks), prompt.reusable_blocks) == (4, 4)
    assert (source, destination) == ("west-d0", "west-p1")
    assert answer == Answer(request_id="r", decoded_from=8)


@pytest.mark.parametrize(("prompt", "answer"), [(10, 2), (8, 4), (11, 1)])
async def test_an_answer_that_completed_no_block_is_left_alone(prompt: int, answer: int) -> None:
    lab = Lab()
    lab.offer(prompt, answer)
    assert not await lab.handed_over()


async def test_answers_stay_at_home_and_go_where_least_is_lacking() -> None:
    lab = Lab()
    pool = Pool(GEOMETRY, 10_000)
    pool.insert(lab.manager.name(range(10)), {0: None, 4: None}, {8: None})
    lab.manager.learn(lab.engines["west-p0"], "prefill", news_of(pool, in_full=True))
    lab.offer(10, 7, prefill="east-p0")
    assert [destination for _, _, destination, _ in await lab.handed_over()] == ["west-p0"]


async def test_nothing_is_handed_over_where_answers_are_dropped_or_nobody_prefills() -> None:
    dropping, lonely = Lab(keeps=("east",)), Lab()
    for name in ("west-p0", "west-p1"):
        lonely.engines[name].alive = False
    for lab in (dropping, lonely):
        lab.offer(10, 7)
        assert not await lab.handed_over()


async def test_of_too_many_that_wait_the_oldest_are_given_up() -> None:
    lab = Lab()
    for number in range(70):
        lab.offer(10, 7, name=f"r{number}")
    names = [answer.request_id for _, _, _, answer in await lab.handed_over()]
    assert names == [f"r{number}" for number in range(6, 70)]


def resolved(**scenario: Any) -> Resolved:
    cache = {"memory": 1000 * 2**20, "disk": 4000 * 2**20}
    topology = {
        "name": "t",
        "datacenters": {"west": {"role": "local", "engines": {"prefill": 1, "decode": 1}, "cache": cache}},
    }
    settings = {
        "name": "s", "topology": topology, "scale": 0.001, "duration": 1.0, "policy": "local-only",
        "workload": {
            "arrivals": {"kind": "poisson", "rate": 1.0}, "prompt": {"kind": "fixed", "tokens": 64},
            "output": {"kind": "fixed", "tokens": 4},
        },
    }  # fmt: skip
    return Resolved(
        source="test.yaml",
        scenario=Scenario.model_validate({**settings, **scenario}),
        topology=Topology.model_validate(topology),
    )


def test_an_engine_gets_its_share_of_memory_and_disk() -> None:
    share = cache_share(resolved(), "west", disk_path=Path("/var/tmp/x"))
    assert share is not None
    assert (share.memory_bytes, share.disk_bytes) == (500 * 2**20 // 1000, 2000 * 2**20 // 1000)
    assert (share.disk_path, share.keeps_answers) == ("/var/tmp/x", True)


def test_what_was_received_in_a_lossy_form_is_not_handed_over() -> None:
    lossy = cache_share(resolved(transport={"compression": "int8"}), "west")
    exact = cache_share(resolved(transport={"compression": "zstd"}), "west")
    assert lossy is not None
    assert exact is not None
    assert (lossy.keeps_answers, exact.keeps_answers) == (False, True)
    assert cache_share(resolved(cache="off"), "west") is None
