#!/usr/bin/env python3
"""Bench of the emulated network: `scripts/bench fabric {follow,bring-up} [options]`.

follow    four links vary at once (step, sine, Ornstein-Uhlenbeck, a mahimahi trace) while each is
          flooded: configured against measured rate, second by second, and how late changes were made.
bring-up  brings topologies of 2, 8 and 32 engines up and down again, and shows that the machine is
          left as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prfaas_lab.fabric.flood import Flood
from prfaas_lab.fabric.fluctuation import rates
from prfaas_lab.fabric.namespaces import NETNS_DIRECTORY
from prfaas_lab.fabric.network import Fabric, up
from prfaas_lab.fabric.ownership import Ownership
from prfaas_lab.fabric.shape import Shape
from prfaas_lab.spec.scenario import Fluctuation
from prfaas_lab.spec.topology import Topology

EVERY_S = 0.1
BIN_S = 1.0
DELAY_S = 0.005
SETTLE_S = 1.0
"""The flood fills the queues first."""


def main() -> None:
    arguments = parse(sys.argv[1:])
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.bench == "follow":
        follow(arguments.shaper, arguments.seconds, arguments.scale, arguments.out)
    else:
        bring_up(arguments.shaper, arguments.rounds, arguments.out)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", choices=("follow", "bring-up"))
    parser.add_argument("--shaper", default="auto", help="auto, netem or tun")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the rates are followed")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of all rates, for a machine too slow to flood them"
    )
    parser.add_argument("--rounds", type=int, default=100, help="bring-ups in all")
    parser.add_argument("--out", type=Path, default=Path("build/bench-fabric"), help="where results go")
    return parser.parse_args(argv)


# -- follow --------------------------------------------------------------------------------------


def follow(shaper: str, seconds: float, scale: float, out: Path) -> None:
    trace = out / "cellular.trace"
    write_trace(trace)
    kinds: dict[str, dict[str, Any]] = {
        "step": {"kind": "steps", "steps": [["0s", "8Mbit"], ["3s", "3Mbit"]], "repeat": "6s"},
        "sine": {"kind": "sine", "mean": "6Mbit", "amplitude": "4Mbit", "period": "15s"},
        "ou": {"kind": "ou", "mean": "6Mbit", "deviation": "2Mbit", "relaxation": "3s",
               "floor": "1Mbit", "ceiling": "10Mbit"},
        "mahimahi": {"kind": "mahimahi", "file": trace.name},
    }  # fmt: skip
    with network(star(list(kinds)), shaper) as fabric:
        steps = schedule(kinds, seconds, scale, out)
        with contextlib.ExitStack() as stack:
            floods = {name: stack.enter_context(flood(fabric, name, scale)) for name in kinds}
            time.sleep(SETTLE_S)
            started_s = time.monotonic()
            late_s = play(fabric, steps, started_s, seconds)
        shaper = fabric.shaper
    rows = {name: compare(steps[name], floods[name], started_s, seconds) for name in kinds}
    show(rows, late_s, shaper)
    (out / f"follow-{shaper}.json").write_text(json.dumps(rows, indent=1))
    plot(rows, out / f"follow-{shaper}.png")


def write_trace(path: Path) -> None:
    """A link like a cellular one, 20 s long: 1-10 Mbit/s, changing every half second (seeded)."""
    dice, slots = random.Random(7), []
    for half in range(40):
        per_second = dice.uniform(1e6, 10e6) / 12000
        slots += sorted(dice.randrange(500) + 500 * half for _ in range(round(per_second / 2)))
    path.write_text("\n".join(map(str, [*slots, 20000])))


def schedule(
    kinds: dict[str, Any], seconds: float, scale: float, base: Path
) -> dict[str, list[tuple[float, float]]]:
    """Name -> (second, rate) steps until the end."""
    steps = {}
    for name, bandwidth in kinds.items():
        spec = Fluctuation.model_validate({"link": name, "bandwidth": bandwidth, "every": f"{EVERY_S}s"})
        path = rates(spec.bandwidth, every_s=EVERY_S, random=random.Random(1), base_dir=base)
        steps[name] = [(at_s, rate_bps * scale) for at_s, rate_bps in until(path, seconds)]
    return steps


def until(path: Iterator[tuple[float, float]], seconds: float) -> list[tuple[float, float]]:
    taken = []
    for at_s, rate_bps in path:
        if at_s >= seconds:
            break
        taken.append((at_s, rate_bps))
    return taken


def play(
    fabric: Fabric, steps: dict[str, list[tuple[float, float]]], started_s: float, seconds: float
) -> list[float]:
    """Make every change at its time; how late each had taken effect."""
    late_s = []
    for at_s, name, rate_bps in sorted((a, name, r) for name, path in steps.items() for a, r in path):
        time.sleep(max(0.0, started_s + at_s - time.monotonic()))
        shape = Shape(rate_bps=rate_bps, delay_s=DELAY_S, queue_bytes=64 * 1024)
        late_s.append(fabric.change(name, "east", shape) - started_s - at_s)
    time.sleep(max(0.0, started_s + seconds - time.monotonic()))
    return late_s


def compare(
    steps: list[tuple[float, float]], flooded: Flood, started_s: float, seconds: float
) -> list[tuple[float, float, float]]:
    """(second, configured, measured) means of every bin; the wire is DELAY_S behind."""
    rows = []
    for i in range(int(seconds / BIN_S)):
        start, end = i * BIN_S, (i + 1) * BIN_S
        measured = flooded.rate_bps(started_s + start + DELAY_S, started_s + end + DELAY_S)
        rows.append((start, mean_rate(steps, start, end), measured))
    return rows


def mean_rate(steps: list[tuple[float, float]], start_s: float, end_s: float) -> float:
    """The mean of a piecewise constant path."""
    edges = [at for at, _ in steps] + [float("inf")]
    bits = sum(
        rate * max(0.0, min(end_s, until_s) - max(start_s, at_s))
        for (at_s, rate), until_s in zip(steps, edges[1:], strict=True)
    )
    return bits / (end_s - start_s)


def show(rows: dict[str, list[tuple[float, float, float]]], late_s: list[float], shaper: str) -> None:
    print(f"shaper: {shaper}")
    print(f"{'link':<10}{'configured':>12}{'measured':>12}{'mean error':>12}{'p95 error':>12}")
    for name, row in rows.items():
        configured = statistics.mean(c for _, c, _ in row)
        errors = [abs(m - c) / configured for _, c, m in row]
        measured = statistics.mean(m for _, _, m in row)
        p95 = statistics.quantiles(errors, n=20)[18]
        print(
            f"{name:<10}{configured / 1e6:>7.3f} Mbit{measured / 1e6:>7.3f} Mbit"
            f"{statistics.mean(errors):>11.2%} {p95:>11.2%}"
        )
    late = statistics.quantiles(late_s, n=100)
    # Late includes what this process, which also floods, makes its own changes wait.
    print(f"{len(late_s)} changes; late p50 {late[49] * 1e3:.2f} ms, p99 {late[98] * 1e3:.2f} ms")


def plot(rows: dict[str, list[tuple[float, float, float]]], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(rows), 1, figsize=(9, 9), sharex=True)
    for axis, (name, row) in zip(axes, rows.items(), strict=True):
        seconds = [at for at, _, _ in row]
        axis.step(seconds, [c / 1e6 for _, c, _ in row], where="post", label="configured", lw=3, alpha=0.4)
        axis.step(seconds, [m / 1e6 for _, _, m in row], where="post", label="measured", lw=1)
        axis.set_ylabel(f"{name}\nMbit/s")
        axis.set_ylim(bottom=0)
    axes[0].legend(loc="upper right")
    axes[-1].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"plot: {path}")


def flood(fabric: Fabric, name: str, scale: float) -> Flood:
    destination = fabric.socket(f"{name}-d0", socket.SOCK_DGRAM)
    destination.bind((fabric.nodes[f"{name}-d0"].address, 0))
    return Flood(fabric.socket("east-p0", socket.SOCK_DGRAM), destination, 12e6 * scale)


def star(names: list[str]) -> Topology:
    """One source, and a local datacenter behind a link for each name."""
    sites = {name: {"role": "local", "engines": {"decode": 1}} for name in names}
    links = {name: {"between": ["east", name], "rate": "6Mbit", "delay": f"{DELAY_S}s"} for name in names}
    east = {"role": "prfaas", "engines": {"prefill": 1}}
    return Topology.model_validate({"name": "star", "datacenters": {"east": east, **sites}, "links": links})


# -- bring-up ------------------------------------------------------------------------------------


def bring_up(shaper: str, rounds: int, out: Path) -> None:
    with network(pair(2), shaper) as fabric:  # whatever is made once per process is made now
        shaper = fabric.shaper
    before = machine()
    seconds: dict[int, list[tuple[float, float]]] = {2: [], 8: [], 32: []}
    for number in range(rounds):
        engines = list(seconds)[number % len(seconds)]
        begin = time.monotonic()
        with network(pair(engines), shaper):
            ready = time.monotonic()
        seconds[engines].append((ready - begin, time.monotonic() - ready))
    after = machine()
    print(f"shaper: {shaper}")
    for engines, times in seconds.items():
        ups, downs = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{engines:>3} engines: up {ups * 1e3:6.0f} ms, down {downs * 1e3:6.0f} ms ({len(times)} times)"
        )
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    print(f"{rounds} bring-ups left " + (f"a difference: {changed}" if changed else "the machine as it was"))
    (out / f"bring-up-{shaper}.json").write_text(json.dumps({str(k): v for k, v in seconds.items()}))
    sys.exit(1 if changed else 0)


def machine() -> dict[str, Any]:
    """What a run could leave behind."""
    pid = os.getpid()
    return {
        "namespaces": sorted(path.name for path in NETNS_DIRECTORY.glob("pl-bench-*")),
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "children": Path(f"/proc/{pid}/task/{pid}/children").read_text().split(),
        "open files": len(os.listdir("/proc/self/fd")),
        "mounts": sum("pl-bench-" in line for line in Path("/proc/self/mounts").open()),
        "journals": sorted(p.name for p in Path("/run/prfaas-lab").glob("bench-*")),
    }


def pair(engines: int) -> Topology:
    """Two datacenters with half of the engines each."""
    half = {"prefill": engines // 2}
    sites = {
        "east": {"role": "prfaas", "engines": half},
        "west": {"role": "local", "engines": {"decode": engines // 2}},
    }
    links = {"wan": {"between": ["east", "west"], "rate": "100Mbit", "delay": "10ms"}}
    return Topology.model_validate({"name": "pair", "datacenters": sites, "links": links})


@contextlib.contextmanager
def network(topology: Topology, shaper: str) -> Iterator[Fabric]:
    ownership = Ownership(f"bench-{random.randrange(16**6):06x}")
    try:
        with up(topology, run_id=ownership.run_id, ownership=ownership, shaper=shaper) as fabric:
            yield fabric
    finally:
        ownership.release()


if __name__ == "__main__":
    main()
