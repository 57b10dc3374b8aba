"""Claims about prefix caches in simulations: times, bytes, and the decisions of the pool itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, cast

import mooncake_like
import pytest

from prfaas_lab.kvcache import Geometry, Pool, hash_prompt
from prfaas_lab.lab.orders import HANDOVER_BYTES
from prfaas_lab.lab.simulate import Simulation, simulate
from prfaas_lab.model.paced_layout import paced_bytes
from prfaas_lab.model.profile import find_profile
from prfaas_lab.spec.load import load_scenario
from prfaas_lab.spec.scenario import Fixed, Resolved
from prfaas_lab.workload.traces import read_mooncake, trace_requests

ROOT = Path(__file__).parents[2]
MOONCAKE = Path("/work/shared/data/mooncake_conversation_trace.jsonl")
H20 = find_profile("8xH20")
FILES = ("summary.json", "requests.jsonl", "events.jsonl", "scenario.yaml")

ALONE = """
name: alone
topology:
  name: alone
  datacenters:
    west: {role: local, hardware: 8xH20, engines: {prefill: 1, decode: 2}, cache: %s}
engine: {executor: paced, chunk: 512, max_queue: 100000}
workload:
  requests: %d
  arrivals: {kind: trace, format: mooncake, file: trace.jsonl}
policy: {name: local-only}
duration: 100h
drain_timeout: 1000h
"""


def alone(tmp_path: Path, trace: list[dict[str, object]], *, cache: str = "1000TiB") -> Resolved:
    mooncake_like.write(tmp_path / "trace.jsonl", trace)
    (tmp_path / "alone.yaml").write_text(ALONE % (cache, len(trace)))
    return load_scenario(tmp_path / "alone.yaml")


def served(resolved: Resolved, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    summary = simulate(resolved, Simulation(out=out))
    rows = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    return summary, sorted(rows, key=lambda row: [int(number) for number in re.findall(r"\d+", row["id"])])


def row(at_ms: int, *ids: int) -> dict[str, object]:
    return {"timestamp": at_ms, "input_length": 512 * len(ids), "output_length": 2, "hash_ids": list(ids)}


def replayed(path: Path, count: int | None = None) -> list[int]:
    """What a pool alone finds, prompt by prompt; `test_pool_replay` holds it to brute force."""
    pool = Pool(Geometry(block_tokens=512, block_bytes=1, snapshot_bytes=1), 10**12)
    found = []
    for request in trace_requests(islice(read_mooncake(path), count), seed=0, vocabulary=2**16):
        prompt = hash_prompt(request.prompt, block_tokens=512, namespace=b"any")
        with pool.acquire(prompt) as lease:
            found.append(lease.tokens)
            wanted = pool.wanted_snapshots(prompt)
            starts = range(lease.tokens, 512 * len(prompt.blocks), 512)
            pool.insert(prompt, dict.fromkeys(starts), dict.fromkeys(wanted))
    return found


def cached(rows: Iterable[dict[str, Any]]) -> list[int]:
    return [row["cached_tokens"] for row in rows]


def test_a_hit_changes_the_prefill_time_by_exactly_the_profiles_increment(tmp_path: Path) -> None:
    trace = [row(0, 1, 2, 3, 4), row(60_000, 1, 2, 3, 4, 5, 6)]
    _, (first, second) = served(alone(tmp_path, trace), tmp_path / "out")
    assert (first["cached_tokens"], second["cached_tokens"]) == (0, 3 * 512), "the last token is computed"
    assert first["handover"]["prefill_ms"] == pytest.approx(1e3 * H20.prefill_s(4 * 512))
    saved_ms = 1e3 * H20.prefill_s(6 * 512) - second["handover"]["prefill_ms"]
    assert saved_ms == pytest.approx(1e3 * (H20.prefill_s(3 * 512) - H20.prefill_s(0)))


def test_who_waits_in_line_finds_what_the_one_before_computed(tmp_path: Path) -> None:
    trace = [row(0, 1, 2, 3, 4), row(0, 1, 2, 3, 4), row(0, 1, 2, 3, 4)]
    _, rows = served(alone(tmp_path, trace), tmp_path / "out")
    assert cached(rows) == [0, 3 * 512, 3 * 512]


@pytest.mark.parametrize("gap_ms", [40, 4000])
def test_one_boundless_engine_finds_in_a_trace_what_the_pool_alone_finds(tmp_path: Path, gap_ms: int) -> None:
    """Idle or overrun: one engine takes its prompts one after the other."""
    trace = mooncake_like.rows(120, gap_ms=gap_ms)
    summary, rows = served(alone(tmp_path, trace), tmp_path / "out")
    expected = replayed(tmp_path / "trace.jsonl")
    assert cached(rows) == expected
    assert sum(expected) > 0
    prompts = sum(row["prompt_tokens"] for row in rows)
    assert summary["cache"]["hit_rate_tokens"] == pytest.approx(sum(expected) / prompts)


def test_with_a_snapshot_at_each_prompts_end_it_finds_what_brute_force_does(tmp_path: Path) -> None:
    trace = mooncake_like.rows(120)
    _, rows = served(alone(tmp_path, trace, cache="{memory: 1000TiB, snapshots: end}"), tmp_path / "out")
    ends: list[list[int]] = []
    expected = []
    for each in trace:
        ids, last = cast("list[int]", each["hash_ids"]), (cast("int", each["input_length"]) - 1) // 512
        before = (len(end) for end in ends if len(end) <= last and end == ids[: len(end)])
        expected.append(512 * max(before, default=0))
        ends.append(ids[:last])
    assert cached(rows) == expected


def test_the_mooncake_trace_too(tmp_path: Path) -> None:
    if not MOONCAKE.exists():
        pytest.skip(f"the Mooncake trace is not at {MOONCAKE}")
    trace = [json.loads(line) for line in islice(MOONCAKE.open(), 150)]
    _, rows = served(alone(tmp_path, trace), tmp_path / "out")
    assert cached(rows) == replayed(MOONCAKE, 150)


def test_every_token_is_found_or_computed_and_every_byte_sent_or_held(tmp_path: Path) -> None:
    summary, rows = served(alone(tmp_path, mooncake_like.rows(120)), tmp_path / "out")
    unit, state_bytes = paced_bytes(H20.kvcache, 1.0)
    for each in rows:
        assert each["violations"] == []
        assert each["cached_tokens"] + each["computed_tokens"] == each["prompt_tokens"]
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    sent = {e["request_id"]: e for e in events if e["kind"] == "TransferFinished"}
    whole = {r["id"]: r["prompt_tokens"] for r in rows}
    for name, each in sent.items():
        assert each["sent_bytes"] + each["held_bytes"] == unit * whole[name] + state_bytes + HANDOVER_BYTES
    assert summary["cache"]["held_bytes"] == sum(e["held_bytes"] for e in sent.values()) > 0


def test_a_bounded_pool_never_holds_more_than_its_budget_and_finds_less(tmp_path: Path) -> None:
    trace = mooncake_like.rows(150)
    boundless, _ = served(alone(tmp_path, trace), tmp_path / "boundless")
    bounded, _ = served(alone(tmp_path, trace, cache="3GiB"), tmp_path / "bounded")
    assert 0 < bounded["cache"]["memory_bytes"] <= 3 * 2**30
    assert bounded["cache"]["evicted_blocks"] > boundless["cache"]["evicted_blocks"] == 0
    assert 0 < bounded["cache"]["cached_tokens"] < boundless["cache"]["cached_tokens"]


def test_chats_with_caches_give_the_same_files_to_the_last_byte(tmp_path: Path) -> None:
    resolved = load_scenario(ROOT / "scenarios" / "multi-turn.yaml")
    for run in ("one", "two"):
        simulate(resolved, Simulation(out=tmp_path / run))
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_chats_are_answered_sooner_with_caches_and_copies_cross_the_link(tmp_path: Path) -> None:
    resolved = load_scenario(ROOT / "scenarios" / "multi-turn.yaml")
    off = resolved.scenario.model_copy(update={"cache": "off"})
    with_cache, rows = served(resolved, tmp_path / "on")
    without = simulate(resolved.model_copy(update={"scenario": off}))
    assert with_cache["cache"]["hit_rate_tokens"] > 0.5
    assert without["cache"]["cached_tokens"] == 0
    assert with_cache["mean_ttft_ms"] < 0.7 * without["mean_ttft_ms"]
    assert with_cache["cache"]["copies"] > 0
    payload = sum(row["received_bytes"] for row in rows if row["offloaded"])
    carried = with_cache["links"]["wan"]["bytes"]
    assert carried == pytest.approx((payload + with_cache["cache"]["copied_bytes"]) / 0.956, rel=1e-5)


def test_the_next_turn_resumes_inside_the_answer_that_decode_handed_over(tmp_path: Path) -> None:
    resolved = load_scenario(ROOT / "scenarios" / "multi-turn.yaml")
    workload = resolved.scenario.workload.model_copy(update={"output": Fixed(kind="fixed", tokens=200)})
    longer = resolved.scenario.model_copy(update={"workload": workload})
    kept = simulate(resolved.model_copy(update={"scenario": longer}))
    assert kept["cache"]["answers"] > 10
    assert kept["cache"]["decoded_tokens"] > 0
    sites = {
        name: site.model_copy(update={"cache": site.cache.model_copy(update={"answers": "drop"})})
        for name, site in resolved.topology.datacenters.items()
        if site.cache is not None
    }
    dropping = resolved.topology.model_copy(update={"datacenters": sites})
    dropped = simulate(resolved.model_copy(update={"scenario": longer, "topology": dropping}))
    assert (dropped["cache"]["answers"], dropped["cache"]["decoded_tokens"]) == (0, 0)
    assert dropped["cache"]["cached_tokens"] < kept["cache"]["cached_tokens"]


def copies_across(tmp_path: Path, rate_bps: float) -> int:
    """Of prefixes between the paper's two datacenters, in the first chats."""
    resolved = load_scenario(ROOT / "scenarios" / "chats-case-study.yaml")
    link = resolved.topology.links["vpc"].model_copy(update={"rate": rate_bps})
    topology = resolved.topology.model_copy(update={"links": {"vpc": link}})
    workload = resolved.scenario.workload.model_copy(update={"requests": 100})
    scenario = resolved.scenario.model_copy(update={"workload": workload})
    out = tmp_path / f"{rate_bps:g}"
    served(resolved.model_copy(update={"scenario": scenario, "topology": topology}), out)
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    ends = [(e["source"][:4], e["destination"][:4]) for e in events if e["kind"] == "CacheCopied"]
    return sum(source != destination for source, destination in ends)


def test_prefixes_cross_an_abundant_link_and_not_a_scarce_one(tmp_path: Path) -> None:
    assert copies_across(tmp_path, 100e9) > 5
    assert copies_across(tmp_path, 0.5e9) == 0


def test_without_caches_a_trace_costs_no_more_than_its_lengths(tmp_path: Path) -> None:
    resolved = alone(tmp_path, mooncake_like.rows(20))
    off = resolved.scenario.model_copy(update={"cache": "off"})
    summary, rows = served(resolved.model_copy(update={"scenario": off}), tmp_path / "out")
    assert cached(rows) == [0] * 20
    assert not summary["cache"]["kept"]
    assert rows[0]["handover"]["prefill_ms"] == pytest.approx(1e3 * H20.prefill_s(rows[0]["prompt_tokens"]))
