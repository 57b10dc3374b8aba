"""Measure the prefix cache pool on a Mooncake trace: policies by budget, and how fast it answers.

    scripts/bench kvcache /work/shared/data/mooncake_conversation_trace.jsonl
    scripts/bench kvcache chat        # or tree: sessions as a scenario's, with made-up answers

Only decisions are made: no model, no payload. Blocks of 512 tokens are scaled to 16 for hashing and
weigh what they weigh in the chosen model. Rates are of process CPU time, so that a busy machine does
not spoil them.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import resource
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np

from prfaas_lab.kvcache.blocks import Geometry, Prompt, hash_prompt
from prfaas_lab.kvcache.eviction import EVICTION_POLICIES
from prfaas_lab.kvcache.pool import Pool
from prfaas_lab.kvcache.snapshots import SNAPSHOT_POLICIES
from prfaas_lab.spec.workload import AgentTree, Chat, Fixed, LogNormal, Poisson, Workload
from prfaas_lab.workload.generate import generate
from prfaas_lab.workload.request import Request
from prfaas_lab.workload.traces import TRACE_BLOCK_TOKENS, TraceScale, read_mooncake, trace_requests

MIB, GIB = 2**20, 2**30
WIDTH = 16
# Bytes of 512 tokens and of the state (the paper's table for its 1T model; facts.md for Qwen3-Next).
MODELS = {
    "paper-1t": Geometry(block_tokens=WIDTH, block_bytes=int(8.37 * MIB), snapshot_bytes=172 * MIB),
    "qwen3-next-80b": Geometry(block_tokens=WIDTH, block_bytes=12 * MIB, snapshot_bytes=int(74.25 * MIB)),
}


def main() -> None:
    """Print the tables, one row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path, help="a trace in Mooncake's format, or chat, or tree")
    parser.add_argument("--requests", type=int, default=None, help="only the first so many")
    parser.add_argument("--model", choices=MODELS, default="paper-1t")
    parser.add_argument("--budget-gib", type=float, nargs="+", default=[50, 100, 200, 400, 800, 1600])
    parser.add_argument("--snapshots", nargs="+", choices=SNAPSHOT_POLICIES, default=list(SNAPSHOT_POLICIES))
    arguments = parser.parse_args()
    prompts = load(arguments.trace, arguments.requests)
    gc.freeze()  # the prompts are the bench's
    gc.set_threshold(50_000, 20, 20)  # as seldom as a simulation does
    print(f"\n{'GiB':>6}  {'snapshots':9}  {'eviction':8}  {'hit rate':>8}  {'reused':>6}  {'cycles/s':>8}")
    for budget, snapshots, eviction in product(arguments.budget_gib, arguments.snapshots, EVICTION_POLICIES):
        pool = Pool(
            MODELS[arguments.model], int(budget * GIB), snapshots=snapshots, eviction=eviction,
            snapshot_every_tokens=4 * WIDTH,
        )  # fmt: skip
        seconds = replay(pool, prompts)
        stats = pool.stats()
        print(
            f"{budget:6g}  {snapshots:9}  {eviction:8}  {stats.hit_rate:8.4f}  "
            f"{stats.snapshot_efficiency:6.3f}  {len(prompts) / seconds:8.0f}",
            flush=True,
        )
    lookups(prompts, MODELS[arguments.model])


def load(trace: Path, count: int | None) -> list[Prompt]:
    """Read, make up tokens, and hash; tells how long each takes."""
    start = time.process_time()
    if str(trace) in ("chat", "tree"):
        requests = list(islice(sessions(str(trace)), count or 6000))
    else:
        scale = TraceScale(block_tokens=WIDTH)
        rows = islice(read_mooncake(trace), count)
        requests = list(trace_requests(rows, seed=1, vocabulary=2**16, scale=scale))
    read = time.process_time()
    prompts = [hash_prompt(r.prompt, block_tokens=WIDTH, namespace=b"bench") for r in requests]
    hashed = time.process_time()
    blocks = sum(len(prompt.blocks) for prompt in prompts)
    print(f"{len(prompts)} requests, {blocks} complete blocks of {TRACE_BLOCK_TOKENS} tokens")
    print(
        f"read {len(prompts) / (read - start):.0f} requests/s, hashed {blocks / (hashed - read):.0f} blocks/s"
    )
    return prompts


def sessions(kind: str) -> Iterator[Request]:
    """Sessions of about eight requests in the order in which their turns come, 30 s apart in the mean; the
    lengths are the conversation trace's, in tokens scaled as its blocks are."""
    shared: dict[str, Any] = {
        "think": 30.0, "systems": 4, "system": Fixed(kind="fixed", tokens=4 * WIDTH), "context": 2**17,
    }  # fmt: skip
    chat = Chat(kind="chat", turns=12, least_turns=4, **shared)
    tree = AgentTree(kind="tree", depth=4, branches=2, **shared)
    workload = Workload(
        requests=10**6,
        arrivals=Poisson(kind="poisson", rate=0.4),
        prompt=LogNormal(kind="lognormal", mu=4.0, sigma=1.0, min=4, max=1024),
        output=Fixed(kind="fixed", tokens=11),
        sessions=chat if kind == "chat" else tree,
    )
    draw = np.random.default_rng(1)
    due = generate(workload, seed=1, vocab_size=2**16, duration_s=1e9)
    upcoming = next(due)
    later: list[tuple[float, str, Request]] = []
    while True:
        assert upcoming.arrival_s is not None
        if later and later[0][0] < upcoming.arrival_s:
            at, _, request = heapq.heappop(later)
        else:
            at, request, upcoming = upcoming.arrival_s, upcoming, next(due)
        yield request
        answer = tuple(int(token) for token in draw.integers(2**16, size=request.output_tokens))
        for follow_up in request.follow_ups:
            heapq.heappush(later, (at + follow_up.think_s, follow_up.id, follow_up.after(request, answer)))


def replay(pool: Pool, prompts: list[Prompt]) -> float:
    """Serve each prompt once: acquire, choose snapshots, insert, release. CPU seconds."""
    start = time.process_time()
    for prompt in prompts:
        with pool.acquire(prompt) as lease:
            wanted = pool.wanted_snapshots(prompt)
            starts = range(lease.tokens, len(prompt.blocks) * WIDTH, WIDTH)
            pool.insert(prompt, dict.fromkeys(starts), dict.fromkeys(wanted))
    return time.process_time() - start


def lookups(prompts: list[Prompt], geometry: Geometry) -> None:
    """Match every prompt against a pool that holds them all, and against one that holds a tenth."""
    print(f"\n{'pool':12}  {'lookups/s':>9}  {'peak RSS':>8}")
    for name, budget in (("tight", 200 * GIB), ("holds all", 10**6 * GIB)):
        pool = Pool(geometry, budget)
        replay(pool, prompts)
        start = time.process_time()
        for prompt in prompts:
            pool.match(prompt)
        rate = len(prompts) / (time.process_time() - start)
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{name:12}  {rate:9.0f}  {rss / 1024:5.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
