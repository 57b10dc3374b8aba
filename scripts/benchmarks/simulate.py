"""Measure `prfaas-lab simulate` beside DynoSim (NVIDIA Dynamo's offline replay) on the same traces.

    scripts/bench simulate [--trace /work/shared/data/mooncake_conversation_trace.jsonl]

Both replay a trace in Mooncake's format on 4 prefill and 4 decode engines, in one run, one after the
other, as processes of their own: what is told is requests per second of wall and of CPU time, start-up
included, and peak memory. DynoSim is installed into an environment of its own (build/dynosim) on first
use. With --fleet, the million requests of scenarios/fleet.yaml too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "bench-simulate"
DYNOSIM = ROOT / "build" / "dynosim"
PACKAGES = (
    ["--no-deps", "ai-dynamo==1.6.1", "ai-dynamo-runtime==1.6.1"],
    ["uvloop", "pydantic", "pyyaml", "msgspec", "aiohttp"],
)

PROFILE = """hardware: bench
model: bench
gpus: 8
prefill: {source: made up for the bench, knots: [[1Ki, 0.1s], [8Ki, 0.4s], [128Ki, 8s]]}
kvcache: {source: made up for the bench, knots: [[1Ki, 190MiB], [128Ki, 2316MiB]]}
decode: {bs_max: 64, step: {source: made up for the bench, knots: [[1, 15ms], [64, 30ms]]}}
"""
SCENARIO = """name: bench
topology:
  name: bench
  datacenters:
    local: {role: local, hardware: profile.yaml, engines: {prefill: 4, decode: 4}}
engine: {executor: paced, max_queue: 100000}
workload: {arrivals: {kind: trace, format: mooncake, file: TRACE}}
policy: {name: local-only}
duration: 100h
drain_timeout: 10h
verify: {share: 0}
"""
REPLAY = """
import sys
from dynamo._core import run_mocker_trace_replay
engine = lambda role: {"engine": {"block_size": 512, "worker_type": role}}
run_mocker_trace_replay(
    [sys.argv[1]], num_prefill_workers=4, num_decode_workers=4, router_mode="kv_router",
    trace_block_size=512, prefill_engine_args=engine("prefill"), decode_engine_args=engine("decode"),
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    wall_s: float
    cpu_s: float
    peak_mib: float


def main() -> None:
    """Print one line a measurement, as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", type=Path, help="a Mooncake trace beside the generated one")
    parser.add_argument("--requests", type=int, default=12_000, help="of the generated trace")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--fleet", action="store_true", help="a million requests on 1,250 instances")
    arguments = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "profile.yaml").write_text(PROFILE)
    python = dynosim()
    traces = [generated(arguments.requests), *([arguments.trace] if arguments.trace else [])]
    print(f"{'trace':34} {'simulator':10} {'requests/s':>10} {'per CPU s':>10} {'peak MiB':>9}", flush=True)
    for trace in traces:
        compare(trace.resolve(), python, arguments.rounds)
    if arguments.fleet:
        cost = run(
            [
                sys.executable,
                "-m",
                "prfaas_lab",
                "simulate",
                "scenarios/fleet.yaml",
                "--out",
                str(BUILD / "fleet"),
            ]
        )
        tell("fleet.yaml", "prfaas-lab", 1_000_000, cost)


def compare(trace: Path, python: Path, rounds: int) -> None:
    """In turns, so that a machine that grows slower does so for both."""
    requests = sum(1 for line in trace.open() if line.strip())
    scenario = BUILD / f"{trace.stem[:40]}.yaml"
    scenario.write_text(SCENARIO.replace("TRACE", str(trace)))
    ours = [
        sys.executable,
        "-m",
        "prfaas_lab",
        "simulate",
        str(scenario),
        "--no-events",
        "--out",
        str(BUILD / "run"),
    ]
    theirs = [str(python), "-c", REPLAY, str(trace)]
    ratios = []
    for _ in range(rounds):
        costs = {"prfaas-lab": run(ours), "DynoSim": run(theirs)}
        for name, cost in costs.items():
            tell(trace.name, name, requests, cost)
        ratios.append(costs["DynoSim"].wall_s / costs["prfaas-lab"].wall_s)
    print(f"{trace.name:34} ours is {max(ratios):.2f} to {min(ratios):.2f} times as fast", flush=True)


def run(command: list[str]) -> Cost:
    """One child, and what it took."""
    environment = {**os.environ, "DYN_LOG": "off", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    child = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed:\n{errors.decode(errors='replace')[-2000:]}")
    return Cost(
        wall_s=time.monotonic() - began,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mib=usage.ru_maxrss / 1024,
    )


def tell(trace: str, name: str, requests: int, cost: Cost) -> None:
    figures = f"{requests / cost.wall_s:10.0f} {requests / cost.cpu_s:10.0f} {cost.peak_mib:9.0f}"
    print(f"{trace[:34]:34} {name:10} {figures}", flush=True)


def generated(requests: int) -> Path:
    """A trace of our own: Poisson at 3.4 requests/s, log-normal lengths, a shared first block."""
    path, rng, at_ms, block = BUILD / f"generated-{requests}.jsonl", random.Random(1), 0.0, 1
    with path.open("w") as file:
        for _ in range(requests):
            at_ms += 1000 * rng.expovariate(3.4)
            length = min(max(int(rng.lognormvariate(8.8, 1.0)), 512), 120_000)
            blocks = -(-length // 512)
            row = {
                "timestamp": int(at_ms), "input_length": length, "output_length": rng.randrange(16, 700),
                "hash_ids": [0, *range(block, block + blocks - 1)],
            }  # fmt: skip
            block += blocks
            file.write(json.dumps(row) + "\n")
    return path


def dynosim() -> Path:
    """The Python of DynoSim's own environment."""
    python = DYNOSIM / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(DYNOSIM)], check=True)
        for packages in PACKAGES:
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    return python


if __name__ == "__main__":
    main()
