"""`transfer-bench`: the transport, measured over links of one's own choice beside other tools."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prfaas_lab.cli.working import working
from prfaas_lab.errors import UnitError, UsageError
from prfaas_lab.fabric.userns import reexec_in_userns
from prfaas_lab.lab.transfer_bench import LINKS, BenchLink, BenchOptions, Row, run_bench, table
from prfaas_lab.lab.transfer_shapes import SHAPES
from prfaas_lab.units import parse_duration, parse_fraction, parse_rate


def transfer_bench(
    link: Annotated[
        list[str] | None,
        typer.Option(
            help="RATE,RTT[,LOSS] or unshaped; repeat.",
            show_default="500Mbit,20ms and 200Mbit,60ms,0.1% and unshaped",
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help=f"Only payload shapes whose name has this: {', '.join(s.name for s in SHAPES)}."),
    ] = None,
    connections: Annotated[
        int, typer.Option(min=1, max=64, help="TCP connections, and iperf3's streams.")
    ] = 4,
    seconds: Annotated[float, typer.Option(min=0.1, help="About how long each measurement takes.")] = 5.0,
    mooncake: Annotated[
        Path | None, typer.Option(help="A python that has Mooncake's transfer engine, to measure it too.")
    ] = None,
    paced: Annotated[bool, typer.Option(help="Also a prefill that computes while it sends.")] = True,
    faults: Annotated[
        bool, typer.Option(help="Also transfers whose connections are cut all the while.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure KVCache transfer: goodput as a share of the link, CPU seconds per GB, exposed time.

    Sender and receiver run in namespaces of their own, over links shaped as runs shape them; iperf3
    (where installed) and Mooncake (with --mooncake; scripts/bench transport installs it) take the
    very same way. Compare the ratios of one run: a shared machine's speed drifts.
    """
    shapes = tuple(s for s in SHAPES if not shape or any(part in s.name for part in shape))
    if not shapes:
        have = "; ".join(s.name for s in SHAPES)
        raise UsageError(
            f"no shape is called {' or '.join(shape or ())}", where="--shape", remedy=f"have: {have}"
        )
    reexec_in_userns()
    options = BenchOptions(
        links=tuple(map(_link, link)) if link else LINKS,
        shapes=shapes,
        connections=connections,
        seconds=seconds,
        iperf3=shutil.which("iperf3") is not None,
        mooncake_python=mooncake,
        paced=paced,
        faults=faults,
    )
    if not options.iperf3:
        typer.echo("iperf3 is not installed, so nothing is compared with it (apt install iperf3)", err=True)
    with working("measuring transfers"):
        rows = asyncio.run(run_bench(options, report=_tell))
    typer.echo(json.dumps([asdict(row) for row in rows], indent=2) if as_json else table(rows))


def _tell(row: Row) -> None:
    outcome = f"failed: {row.failure}" if row.failure else f"{row.goodput_bps / 1e6:.1f} Mbit/s"
    typer.echo(f"{row.link}: {row.runner}, {row.shape}: {outcome}", err=True)


def _link(text: str) -> BenchLink:
    if text == "unshaped":
        return BenchLink()
    fields = text.split(",")
    if len(fields) not in (2, 3):
        raise UnitError(
            f"{text!r} is no link", where="--link", remedy="write 500Mbit,20ms or 200Mbit,60ms,0.1%"
        )
    loss = parse_fraction(fields[2]) if len(fields) == 3 else 0.0
    return BenchLink(rate_bps=parse_rate(fields[0]), rtt_s=parse_duration(fields[1]), loss=loss)
