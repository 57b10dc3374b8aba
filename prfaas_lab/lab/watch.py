"""What is read at intervals during a run: engines, links, the machine; all of it into the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prfaas_lab.errors import EngineError
from prfaas_lab.fabric.shape import Counters, Shape
from prfaas_lab.lab.cpu_times import cpu_times
from prfaas_lab.lab.engines import Engine
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger

if TYPE_CHECKING:
    from prfaas_lab.fabric.network import Fabric

LINK_INTERVAL_S = 0.1
ENGINE_INTERVAL_S = 0.5
MACHINE_INTERVAL_S = 0.5
_TIMER_PROBE_S = 0.05


class Links(Protocol):
    """What can be read of a network, emulated or simulated."""

    directions: tuple[tuple[str, str], ...]

    def shape(self, link: str, source: str) -> Shape: ...

    def nominal_bps(self, link: str, source: str) -> float | None: ...

    def counters(self, link: str, source: str) -> Counters: ...

    def retransmitted_segments(self, datacenter: str) -> int | None: ...


async def watch_links(fabric: Fabric, ledger: Ledger) -> None:
    """Counters of every link direction, for as long as it is left to run."""
    while True:
        await sample_links(fabric, ledger)
        await asyncio.sleep(LINK_INTERVAL_S)


async def sample_links(fabric: Fabric, ledger: Ledger) -> None:
    """Read every direction once. Before the workload starts this is what its traffic counts from."""
    for sample in await asyncio.to_thread(read_links, fabric, ledger):
        ledger.record(sample)


def read_links(fabric: Links, ledger: Ledger) -> list[ev.LinkSampled]:
    """What every direction has carried until now."""
    samples = []
    retransmitted = {source: fabric.retransmitted_segments(source) for _, source in fabric.directions}
    for link, source in fabric.directions:
        counters = fabric.counters(link, source)
        samples.append(
            ev.LinkSampled(
                at_s=ledger.now(),
                link=link,
                source=source,
                configured_bps=fabric.nominal_bps(link, source),
                bytes_total=counters.bytes_total,
                packets_total=counters.packets_total,
                dropped_total=counters.dropped_total,
                backlog_bytes=counters.backlog_bytes,
                retransmitted_total=retransmitted[source],
            )
        )
    return samples


async def watch_engines(engines: Iterable[Engine], ledger: Ledger) -> None:
    """Every live engine's own account of itself, for as long as it is left to run."""
    engines = tuple(engines)
    while True:
        await sample_engines(engines, ledger)
        await asyncio.sleep(ENGINE_INTERVAL_S)


async def sample_engines(engines: Iterable[Engine], ledger: Ledger) -> None:
    """Ask every live engine once. One that does not answer is skipped: its end, if it has ended, is
    told by the zygote."""
    await asyncio.gather(*(_sample_engine(engine, ledger) for engine in engines if engine.alive))


async def _sample_engine(engine: Engine, ledger: Ledger) -> None:
    try:
        state = await engine.client.state()
    except EngineError:
        return
    started = ledger.tally.engine(engine.name).started
    cpu_s, waited_s = (cpu_times(started.pid) if started and started.pid else None) or (None, None)
    ledger.record(
        ev.EngineSampled(
            at_s=ledger.now(),
            engine=engine.name,
            queued=state["queued"],
            running=state["running"],
            busy_s=state["busy_s"],
            tokens_total=state["tokens_total"],
            cpu_s=cpu_s,
            waited_s=waited_s,
        )
    )


async def watch_shaper(pid: int | None, ledger: Ledger) -> None:
    """What the shaper's process gets of the CPUs, for as long as it is left to run or lives. A kernel
    shaper has no process."""
    while pid is not None and (times := cpu_times(pid)) is not None:
        cpu_s, waited_s = times
        ledger.record(ev.ShaperSampled(at_s=ledger.now(), cpu_s=cpu_s, waited_s=waited_s))
        await asyncio.sleep(ENGINE_INTERVAL_S)


async def watch_machine(ledger: Ledger) -> None:
    """CPU use of the whole machine, and by how much this loop's timers come late."""
    before, worst_lag_s, due = _cpu_ticks(), 0.0, ledger.now() + MACHINE_INTERVAL_S
    while True:
        asked = time.monotonic()
        await asyncio.sleep(_TIMER_PROBE_S)
        worst_lag_s = max(worst_lag_s, time.monotonic() - asked - _TIMER_PROBE_S)
        if ledger.now() >= due:
            after = _cpu_ticks()
            busy, total = after[0] - before[0], after[1] - before[1]
            fraction = busy / total if total else 0.0
            ledger.record(
                ev.MachineSampled(at_s=ledger.now(), cpu_fraction=fraction, timer_lag_s=worst_lag_s)
            )
            before, worst_lag_s, due = after, 0.0, ledger.now() + MACHINE_INTERVAL_S


def _cpu_ticks() -> tuple[int, int]:
    """(busy, all) ticks of all cores since boot. Time stolen by a hypervisor counts as busy: it is
    not there for us. See proc_stat(5)."""
    user, nice, system, idle, iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    busy = user + nice + system + irq + softirq + steal
    return busy, busy + idle + iowait
