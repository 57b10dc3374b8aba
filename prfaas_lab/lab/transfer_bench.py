"""`prfaas-lab transfer-bench`: our transport beside iperf3 and Mooncake, over the very same links."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from prfaas_lab.errors import LabError
from prfaas_lab.fabric import network
from prfaas_lab.fabric.ownership import Ownership
from prfaas_lab.fabric.plan import Node
from prfaas_lab.fabric.shape import ACHIEVABLE
from prfaas_lab.lab.transfer_runners import Measured, Mooncake, OurTransport, iperf3
from prfaas_lab.lab.transfer_shapes import (
    MIB,
    MODELS,
    PACED_CHUNK_TOKENS,
    PACED_TOKENS,
    SHAPES,
    PacedShape,
    Shape,
    paced,
    plain,
)
from prfaas_lab.spec.topology import Topology

_OURS, _IPERF3, _MOONCAKE = "prfaas-lab", "iperf3", "mooncake"
_KILL_EVERY_S, _KILL_TRANSFERS, _KILL_CONNECTIONS = 0.2, 200, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLink:
    """A link to measure over. `rate_bps` None: unshaped."""

    rate_bps: float | None = None
    rtt_s: float = 0.0
    loss: float = 0.0

    @property
    def name(self) -> str:
        if self.rate_bps is None:
            return "unshaped"
        loss = f", {self.loss:.2%} loss" if self.loss else ""
        return f"{self.rate_bps / 1e6:g} Mbit, {self.rtt_s * 1e3:g} ms{loss}"

    @property
    def topology(self) -> Topology:
        link: dict[str, object] = {"between": ["here", "there"], "delay": self.rtt_s / 2}
        if self.rate_bps is not None:
            link["rate"] = self.rate_bps
        if self.loss:
            link["loss"] = self.loss
        datacenters = {
            "here": {"role": "prfaas", "engines": {"prefill": 1}},
            "there": {"role": "local", "engines": {"prefill": 1, "decode": 1}},
        }
        return Topology.model_validate({"name": "bench", "datacenters": datacenters, "links": {"wan": link}})


LINKS = (
    BenchLink(rate_bps=500e6, rtt_s=0.020),
    BenchLink(rate_bps=200e6, rtt_s=0.060, loss=0.001),
    BenchLink(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to measure. `mooncake_python`: an interpreter that has Mooncake; None leaves it out."""

    links: tuple[BenchLink, ...] = LINKS
    shapes: tuple[Shape, ...] = SHAPES
    connections: int = 4
    """TCP connections of ours, and streams of iperf3."""
    depth: int = 2
    """Transfers under way at a time, ours and Mooncake's alike."""
    seconds: float = 5.0
    """About how long each measurement takes on a link without loss or contention."""
    iperf3: bool = True
    mooncake_python: Path | None = None
    paced: bool = True
    faults: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement."""

    link: str
    shape: str
    runner: str
    goodput_bps: float
    share_of_link: float | None
    """Of the TCP goodput that the link's rate allows."""
    share_of_iperf3: float | None
    """Of iperf3's goodput just before and after, on the same link."""
    cpu_s_per_gb: float
    exposed_s: float | None = None
    """Paced pattern: from the end of prefill to the last byte's arrival, the worst transfer."""
    exposed_limit_s: float | None = None
    """One layer-chunk's transfer and one round trip; two where the link loses packets."""
    estimate_error: float | None = None
    """Of the available egress that our transport sees, against the configured rate."""
    retried: int = 0
    killed: int = 0
    failure: str = ""
    """Why a rival could not do it; its figures are then 0."""


async def run_bench(options: BenchOptions, report: Callable[[Row], None] | None = None) -> list[Row]:
    """Link after link, each with all runners; `report` gets each row as it is measured.

    Raises FabricError when the links cannot be made here, LabError when a runner fails or bytes
    arrive other than they were sent.
    """
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        if report is not None:
            report(row)

    for link in options.links:
        async with _nodes(link) as (source, destination):
            await _measure_link(_Case(options, link, source, destination), add)
    return rows


@dataclass(frozen=True, slots=True)
class _Case:
    """One link that is up, and what to do over it."""

    options: BenchOptions
    link: BenchLink
    source: Node
    destination: Node

    @property
    def settings(self) -> dict[str, object]:
        return {"rate_bps": self.link.rate_bps, "rtt_s": self.link.rtt_s}

    def row(self, shape: str, runner: str, measured: Measured, reference_bps: float | None) -> Row:
        rate_bps = self.link.rate_bps
        return Row(
            link=self.link.name,
            shape=shape,
            runner=runner,
            goodput_bps=measured.goodput_bps,
            share_of_link=None if rate_bps is None else measured.goodput_bps / (rate_bps * ACHIEVABLE),
            share_of_iperf3=measured.goodput_bps / reference_bps if reference_bps else None,
            cpu_s_per_gb=measured.cpu_s_per_gb,
            estimate_error=_error(measured.available_bps, rate_bps) if runner == _OURS else None,
            retried=measured.retried,
            killed=measured.killed,
        )

    def transfers(self, shape: Shape, goodput_bps: float) -> int:
        """As many as take about `seconds`, and each lane at least one."""
        count = math.ceil(self.options.seconds * goodput_bps / 8 / shape.total_bytes)
        return max(count, self.options.depth)


async def _measure_link(case: _Case, add: Callable[[Row], None]) -> None:
    options = case.options
    reference = await _reference(case, add)
    expected_bps = reference or (case.link.rate_bps or 2e9) * ACHIEVABLE
    settings = {**case.settings, "connections": options.connections}
    async with OurTransport.up(case.source, case.destination, settings) as ours:
        await ours.run("warm-up", plain(8, MIB).sizes, 2)
        for shape in options.shapes:
            count = case.transfers(shape, expected_bps)
            measured = await ours.run(shape.name, shape.sizes, count, depth=options.depth)
            add(case.row(shape.name, _OURS, measured, reference))
        if options.paced and case.link.rate_bps is not None:
            await _measure_paced(case, ours, reference, add)
    if options.mooncake_python is not None:
        await _measure_mooncake(case, options.mooncake_python, expected_bps, reference, add)
    if options.faults:
        await _measure_faults(case, reference, add)


async def _reference(case: _Case, add: Callable[[Row], None]) -> float | None:
    if not case.options.iperf3:
        return None
    streams = case.options.connections
    measured = await iperf3(case.source, case.destination, streams=streams, seconds=case.options.seconds)
    add(case.row(f"{streams} streams", _IPERF3, measured, None))
    return measured.goodput_bps


async def _measure_paced(
    case: _Case, ours: OurTransport, reference: float | None, add: Callable[[Row], None]
) -> None:
    """A prefill that computes twice as long as its cache takes to cross."""
    assert case.link.rate_bps is not None
    goodput_bps = case.link.rate_bps * ACHIEVABLE
    layout = MODELS["kimi-linear-48b"](PACED_CHUNK_TOKENS)
    compute_s = 2 * layout.request_bytes(PACED_TOKENS) * 8 / goodput_bps
    shape = paced("kimi-linear-48b", layout, PACED_TOKENS, compute_s)
    measured = await ours.run(shape.name, shape.sizes, 1, ready_s=shape.ready_s)
    limit_s = _exposed_limit_s(shape, goodput_bps, case.link)
    row = case.row(shape.name, _OURS, measured, reference)
    add(_with_exposed(row, measured.exposed_s, limit_s))


async def _measure_faults(case: _Case, reference: float | None, add: Callable[[Row], None]) -> None:
    """Connections are cut all the while; each transfer's memory is cleared before and digested after."""
    shape = plain(32, 64 * 1024)
    settings = {**case.settings, "connections": _KILL_CONNECTIONS}
    async with OurTransport.up(case.source, case.destination, settings) as ours:
        measured = await ours.run(
            "connections cut", shape.sizes, _KILL_TRANSFERS, depth=case.options.depth, verify_each=True,
            kill_every_s=_KILL_EVERY_S,
        )  # fmt: skip
    add(case.row(f"{_KILL_TRANSFERS} x 2MiB, connections cut", _OURS, measured, reference))


async def _measure_mooncake(
    case: _Case, python: Path, expected_bps: float, reference: float | None, add: Callable[[Row], None]
) -> None:
    """A shape that it fails at is a row that says so: its process has ended, the next gets a new one."""
    for shape in case.options.shapes:
        # It may be several times slower: fewer transfers, that its rate still shows in.
        count = max(case.options.depth, case.transfers(shape, expected_bps) // 4)
        try:
            async with Mooncake.up(case.source, case.destination, python) as mooncake:
                await mooncake.run(plain(8, MIB).sizes, 1, 1)
                measured = await mooncake.run(shape.sizes, count, case.options.depth)
        except LabError as error:
            failed = case.row(shape.name, _MOONCAKE, Measured(goodput_bps=0, cpu_s_per_gb=0), reference)
            add(replace(failed, failure=str(error)))
        else:
            add(case.row(shape.name, _MOONCAKE, measured, reference))


def _exposed_limit_s(shape: PacedShape, goodput_bps: float, link: BenchLink) -> float:
    """Where packets are lost, one of the last may be: its copy comes a round trip later."""
    round_trips = 2 if link.loss else 1
    return shape.largest_step_bytes * 8 / goodput_bps + round_trips * link.rtt_s


def _with_exposed(row: Row, exposed_s: float | None, limit_s: float) -> Row:
    return replace(row, exposed_s=exposed_s, exposed_limit_s=limit_s)


def _error(estimate_bps: float | None, rate_bps: float | None) -> float | None:
    return estimate_bps / rate_bps - 1 if estimate_bps and rate_bps else None


@contextlib.asynccontextmanager
async def _nodes(link: BenchLink) -> AsyncIterator[tuple[Node, Node]]:
    """The prefill engine's and the decode engine's place, on a link that is up."""
    run_id = f"tb{os.getpid() % 100000}"
    ownership = Ownership(run_id)
    with contextlib.ExitStack() as stack:
        stack.callback(ownership.release)
        made = network.up(link.topology, run_id=run_id, ownership=ownership)
        fabric = await asyncio.to_thread(stack.enter_context, made)
        yield fabric.nodes["here-p0"], fabric.nodes["there-d0"]


def table(rows: list[Row]) -> str:
    """The rows as text, a line each."""
    head = ("link", "shape", "runner", "Mbit/s", "of link", "of iperf3", "CPU s/GB", "exposed", "estimate")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    def share(value: float | None, form: str = ".1%") -> str:
        return "-" if value is None else format(value, form)

    exposed = "-" if row.exposed_s is None else f"{row.exposed_s * 1e3:.0f} ms"
    if row.exposed_limit_s is not None:
        exposed += f" (limit {row.exposed_limit_s * 1e3:.0f})"
    shape = row.shape + (f" ({row.killed} times)" if row.killed else "")
    if row.failure:
        return (row.link, shape, row.runner, "failed", *["-"] * 5)
    return (
        row.link, shape, row.runner, f"{row.goodput_bps / 1e6:.1f}", share(row.share_of_link),
        share(row.share_of_iperf3), f"{row.cpu_s_per_gb:.2f}", exposed, share(row.estimate_error, "+.1%"),
    )  # fmt: skip
