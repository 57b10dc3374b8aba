"""Claims about what a run's caches are said to have done."""

from __future__ import annotations

from typing import Any

import pytest

from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.caches import Caches

SITES = {"east-p0": "east", "west-p0": "west", "west-d0": "west"}


def prefilled(engine: str, cached: int, computed: int) -> ev.PrefillFinished:
    return ev.PrefillFinished(
        at_s=1.0, request_id="r", engine=engine, cached_tokens=cached, computed_tokens=computed
    )


def sampled(engine: str, role: str = "prefill", **counts: int) -> ev.CacheSampled:
    return ev.CacheSampled(
        at_s=1.0, engine=engine, role=role, **{**dict.fromkeys(ev.CACHE_COUNTS, 0), **counts}
    )


def report() -> dict[str, Any]:
    caches = Caches()
    for engine, cached, computed in (("east-p0", 0, 300), ("east-p0", 300, 100), ("west-p0", 100, 0)):
        caches.prefilled(prefilled(engine, cached, computed))
    caches.sampled(sampled("west-p0", snapshots_made=1))
    caches.sampled(sampled("west-p0", snapshots_made=4, snapshots_reused=3, blocks=7))
    caches.sampled(sampled("west-d0", blocks=2, evicted_blocks=5))
    caches.transferred(
        ev.TransferFinished(
            at_s=2.0, request_id="r", source="east-p0", destination="west-d0",
            sent_bytes=10, received_bytes=10, held_bytes=90,
        )
    )  # fmt: skip
    caches.copied(
        ev.CacheCopied(
            at_s=2.0, source="east-p0", destination="west-p0", tokens=64, bytes=40, took_s=0.1, reason="hot"
        )
    )
    caches.copied(
        ev.CacheCopied(
            at_s=3.0, source="west-d0", destination="west-p0", tokens=128, bytes=30, took_s=0.1,
            reason="answer of r", answer_of="r",
        )
    )  # fmt: skip
    return caches.report(SITES)


def test_hit_rates_are_by_requests_and_by_tokens_over_all_and_per_datacenter() -> None:
    found = report()
    assert (found["hit_rate_requests"], found["hit_rate_tokens"]) == (pytest.approx(2 / 3), 0.5)
    east, west = found["datacenters"]["east"], found["datacenters"]["west"]
    assert (east["hit_rate_requests"], west["hit_rate_requests"]) == (0.5, 1.0)
    assert (east["hit_rate_tokens"], west["hit_rate_tokens"]) == (pytest.approx(3 / 7), 1.0)


def test_pools_count_as_they_were_last_seen() -> None:
    west = report()["datacenters"]["west"]
    assert (west["blocks"], west["snapshots_made"], west["evicted_blocks"]) == (9, 4, 5)
    assert west["snapshot_efficiency"] == 0.75
    assert report()["datacenters"]["east"]["snapshot_efficiency"] is None


def test_both_pools_of_an_engine_that_changes_its_role_count() -> None:
    caches = Caches()
    caches.sampled(sampled("west-p0", role="prefill", blocks=3, evicted_blocks=1))
    caches.sampled(sampled("west-p0", role="prefill", blocks=5, evicted_blocks=2))
    caches.sampled(sampled("west-p0", role="decode", blocks=4, evicted_blocks=7))
    found = caches.report(SITES)
    assert (found["blocks"], found["evicted_blocks"]) == (9, 9)
    assert found["datacenters"]["west"]["blocks"] == 9


def test_what_did_not_cross_and_what_was_copied_is_told() -> None:
    found = report()
    assert (found["held_bytes"], found["copies"], found["copied_bytes"]) == (90, 1, 40)
    assert (found["answers"], found["answer_bytes"]) == (1, 30)


def test_a_run_without_caches_says_so() -> None:
    empty = Caches().report(SITES)
    assert not empty["kept"]
    assert empty["hit_rate_tokens"] is None
