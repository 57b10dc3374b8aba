"""Claims about the controller's rounds over its senders, on a virtual clock."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest

from prfaas_lab.lab.egress import Estimate
from prfaas_lab.lab.virtual_time import run_virtual
from prfaas_lab.lab.watch_paths import PATH_INTERVAL_S, watch_paths
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.transport.congestion import PathSample

RATE_BPS, BUSY_S, PERIOD_S, ANSWER_S = 8e6, 0.35, 1.0, 0.004


def busy_until(at_s: float) -> float:
    """Seconds of sending."""
    periods, within_s = divmod(at_s + 1e-9, PERIOD_S)
    return periods * BUSY_S + min(within_s, BUSY_S)


class Sender:
    """A prefill engine that sends all along while it has an order, and samples that every 100 ms."""

    name, datacenter, role, alive = "east-p0", "east", "prefill", True

    def __init__(self) -> None:
        self.orders: set[str] = set()
        self.client, self.asked = self, 0
        self._sample = {"at_s": 0.0, "throughput_bps": 0.0}

    async def work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.orders.add("r")
            began = loop.time()
            await asyncio.sleep(BUSY_S)
            self.orders.clear()
            await asyncio.sleep(began + PERIOD_S - loop.time())

    async def sample(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            since = loop.time()
            await asyncio.sleep(PATH_INTERVAL_S)
            sent = busy_until(loop.time()) - busy_until(since)
            self._sample = {"at_s": loop.time(), "throughput_bps": RATE_BPS * sent / PATH_INTERVAL_S}

    async def state(self) -> dict[str, Any]:
        self.asked += 1
        await asyncio.sleep(ANSWER_S)
        sample = PathSample(
            connections=1, available_bps=None, backlog_bytes=0, rtt_s=0.02, min_rtt_s=0.02, loss=0.0,
            receiver_limited=0.0, **self._sample,
        )  # fmt: skip
        told = {"utilisation": 0.0, "queueing_delay_s": 0.0, "congested": False}
        return {"paths": [{"host": "10.0.0.2", **asdict(sample), **told}]}


async def learnt(sender: Sender, seconds: float) -> list[Estimate]:
    """What is known of the way at each round, for so long."""
    loop = asyncio.get_running_loop()
    estimates: list[Estimate] = []
    topology = SimpleNamespace(datacenters={"east": SimpleNamespace(role="prfaas")})
    ways = SimpleNamespace(
        paths=lambda: [SimpleNamespace(source="east", destination="west")],
        data_address=lambda *_: ("10.0.0.2", 7000),
        bottleneck=lambda *_: ("wan", "east"),
        configured_bps=lambda *_: 10e6,
        learn=lambda source, destination, estimate: estimates.append(estimate),
    )
    receiver = SimpleNamespace(name="west-d0", datacenter="west", role="decode")
    watch = watch_paths([sender, receiver], topology, ways, Ledger(loop.time, 0.0))  # type: ignore[arg-type, list-item]
    tasks = [asyncio.ensure_future(work) for work in (sender.work(), sender.sample(), watch)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return estimates


def test_all_that_is_sent_is_seen_though_engines_are_idle_in_between():
    estimates = run_virtual(learnt(Sender(), 20.0))
    mean_bps = fmean(estimate.throughput_bps for estimate in estimates[20:])
    assert mean_bps == pytest.approx(RATE_BPS * BUSY_S / PERIOD_S, rel=0.02)


def test_an_engine_that_has_been_idle_for_long_is_not_asked():
    sender = Sender()
    run_virtual(learnt(sender, 20.0))
    assert sender.asked < 0.8 * 20.0 / PATH_INTERVAL_S
