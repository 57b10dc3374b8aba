#!/usr/bin/env python3
"""The transport beside iperf3 and Mooncake over the same links, and whether it keeps its promises.

    scripts/bench transport [--seconds 8] [--connections 4] [--depth 2] [--json FILE]

Needs root and iperf3 (Debian: iperf3). Mooncake goes into an environment of its own, made on first
use under ~/.cache/prfaas-lab/mooncake; `--no-mooncake` leaves it out. Exit code 1: a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from dataclasses import asdict
from pathlib import Path

import uvloop

from prfaas_lab.lab.transfer_bench import BenchOptions, Row, run_bench, table

MOONCAKE = Path.home() / ".cache/prfaas-lab/mooncake"
PACKAGE = "mooncake-transfer-engine-non-cuda"


def main() -> int:
    options = _arguments()
    rows = uvloop.run(
        run_bench(_bench_options(options), lambda row: print(table([row]).splitlines()[1], flush=True))
    )
    print("\n" + table(rows) + "\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    promises = list(_promises(rows))
    for kept, text in promises:
        print("kept  " if kept else "BROKEN", text)
    return 0 if all(kept for kept, _ in promises) else 1


def _promises(rows: list[Row]):
    """(kept, what) for each promise of the transport that these rows say something about."""
    ours = [row for row in rows if row.runner == "prfaas-lab"]
    mooncake = {(row.link, row.shape): row.goodput_bps for row in rows if row.runner == "mooncake"}
    for row in ours:
        where = f"{row.link}: {row.shape}:"
        if row.killed:
            yield True, f"{where} every byte arrived once, intact, {row.killed} connections cut"
        elif row.exposed_s is not None and row.exposed_limit_s is not None:
            text = f"{where} exposed {row.exposed_s * 1e3:.0f} ms, limit {row.exposed_limit_s * 1e3:.0f} ms"
            yield row.exposed_s <= row.exposed_limit_s, text
        elif row.share_of_iperf3 is not None:
            least = 0.6 if row.share_of_link is None else 0.9 if "loss" in row.link else 0.95
            text = f"{where} {row.share_of_iperf3:.1%} of iperf3, at least {least:.0%}"
            yield row.share_of_iperf3 >= least, text
        if row.share_of_link is None and (row.link, row.shape) in mooncake:
            theirs = mooncake[row.link, row.shape]
            text = f"{where} {row.goodput_bps / 1e6:.0f} Mbit/s, Mooncake {theirs / 1e6:.0f}"
            yield row.goodput_bps >= theirs, text


def _bench_options(options: argparse.Namespace) -> BenchOptions:
    return BenchOptions(
        seconds=options.seconds, connections=options.connections, depth=options.depth,
        mooncake_python=_mooncake_python() if options.mooncake else None,
    )  # fmt: skip


def _mooncake_python() -> Path:
    python = MOONCAKE / "bin/python"
    if not python.exists():
        print(f"installing {PACKAGE} into {MOONCAKE} ...", flush=True)
        venv.create(MOONCAKE, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    return python


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="about how long each measurement takes")
    parser.add_argument("--connections", type=int, default=4, help="connections of ours, streams of iperf3")
    parser.add_argument("--depth", type=int, default=2, help="transfers under way at a time")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    parser.add_argument("--mooncake", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
