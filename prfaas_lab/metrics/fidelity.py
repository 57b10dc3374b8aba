"""Whether a run may be believed, and why not: VALID, SUSPECT or INVALID with reasons in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from prfaas_lab.metrics.events import RunStarted
from prfaas_lab.metrics.handover import SKEW_S
from prfaas_lab.metrics.resources import Direction
from prfaas_lab.metrics.tally import Tally
from prfaas_lab.metrics.totals import Totals
from prfaas_lab.units import format_duration, format_rate

LATE_CHANGE_S = 0.1
"""A live change of a link may take effect this long after it was due."""
BUNCHED_FRACTION = 0.05
"""Tokens may reach the client together this often before ITL and TPOT are in doubt."""
RATE_EXCESS = 1.05
BURST_BYTES = 1 << 20
"""A shaper may let through this share of its rate, and this much at once, before it is in doubt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """INVALID: the run broke a law, so its figures mean nothing. SUSPECT: something was strained or
    off its spec, so they may be distorted. VALID: no reason for doubt was found."""

    verdict: Literal["VALID", "SUSPECT", "INVALID"]
    reasons: tuple[str, ...]


def judge(tally: Tally, totals: Totals | None = None) -> Fidelity:
    """The verdict on a run that is over; a request still in flight is lost. `totals` are the tally's,
    where they are at hand."""
    totals = tally.totals() if totals is None else totals
    invalid = [*_mismatches(tally), *_losses(tally, totals), *_bypasses(tally, totals)]
    suspect = [
        *_strained_machine(tally),
        *_starved_processes(tally),
        *_bunched_tokens(tally),
        *_links_off_spec(tally),
        *_late_changes(tally),
        *_disorder(totals),
        *_dead_engines(tally),
        *_unverified(tally),
    ]
    verdict: Literal["VALID", "SUSPECT", "INVALID"] = (
        "INVALID" if invalid else "SUSPECT" if suspect else "VALID"
    )
    return Fidelity(verdict=verdict, reasons=(*invalid, *suspect))


def _mismatches(tally: Tally) -> Iterator[str]:
    wrong, compared = tally.verified["mismatch"], tally.verified.total()
    if wrong:
        yield f"{wrong} of {compared} verified outputs differ from one-process generation"


def _losses(tally: Tally, totals: Totals) -> Iterator[str]:
    if tally.in_flight:
        yield f"{_count(tally.in_flight, 'request')} neither completed nor failed"
    for kind, what in (("bytes", "lost KVCache bytes"), ("account", "badly accounted for")):
        broken = totals.broken.get(kind)
        if broken:
            yield f"{_count(broken.count, 'request')} {what} ({_few(broken.texts)})"


def _bypasses(tally: Tally, totals: Totals) -> Iterator[str]:
    """KVCache that crossed between two datacenters must show in the counters of a link between."""
    for (source, destination), crossed in totals.crossed.items():
        carried = [d.carried_bytes for d in _directions_out(tally, source, destination) if d.last]
        if carried and sum(carried) < crossed:
            yield (
                f"{source} sent {crossed} bytes of KVCache to {destination}, but the links between"
                f" them counted {sum(carried)}: traffic went around the shaped link"
            )


def _directions_out(tally: Tally, source: str, destination: str) -> list[Direction]:
    """The directions that leave `source` on a direct link; none when other sites lie between."""
    links = (
        {name for name, *ends in tally.run.links if {source, destination} == set(ends)} if tally.run else ()
    )
    return [d for (link, start), d in tally.directions.items() if link in links and start == source]


def _strained_machine(tally: Tally) -> Iterator[str]:
    run = tally.run or _NOTHING_SAID
    cpu, lag = tally.machine.cpu.statistics().mean, tally.machine.timer_lag.percentile(99)
    if cpu is not None and cpu > run.cpu_tolerance:
        yield f"the machine's CPUs were {cpu:.0%} busy on average (tolerance {run.cpu_tolerance:.0%})"
    if lag is not None and lag > run.timer_lag_tolerance_s:
        limit = format_duration(run.timer_lag_tolerance_s)
        yield f"p99 timer lag of the controller was {format_duration(lag)} (tolerance {limit})"


def _starved_processes(tally: Tally) -> Iterator[str]:
    """What waits for a CPU is late: packets in the shaper, tokens in the engines."""
    run = tally.run or _NOTHING_SAID
    shaper, engines = tally.shaper_process, tally.engines.values()
    if (taken := shaper.cpu_fraction) is not None and taken > run.cpu_tolerance:
        yield f"the shaper took {taken:.0%} of a CPU (tolerance {run.cpu_tolerance:.0%})"
    if (waited := shaper.wait_fraction) is not None and waited > run.shaper_wait_tolerance:
        limit = f"{run.shaper_wait_tolerance:.1%}"
        yield f"the shaper waited for a CPU {waited:.1%} of the time (tolerance {limit})"
    waits = {engine.name: engine.cpu.wait_fraction or 0.0 for engine in engines}
    starved = [name for name, waited in waits.items() if waited > run.engine_wait_tolerance]
    if starved:
        worst, limit = max(starved, key=waits.__getitem__), f"{run.engine_wait_tolerance:.0%}"
        yield (
            f"{_count(len(starved), 'engine')} waited for a CPU, {worst} {waits[worst]:.0%} of the time"
            f" (tolerance {limit})"
        )


def _bunched_tokens(tally: Tally) -> Iterator[str]:
    """On a starved machine several steps' tokens reach the client together. In virtual time nothing
    is starved."""
    share = tally.bunched_fraction
    if tally.run and tally.run.mode != "simulate" and share is not None and share > BUNCHED_FRACTION:
        yield (
            f"{share:.0%} of the tokens reached the client together with the one before (tolerance"
            f" {BUNCHED_FRACTION:.0%}), which distorts TPOT and ITL"
        )


def _links_off_spec(tally: Tally) -> Iterator[str]:
    for direction in tally.directions.values():
        yield from direction.reasons
        carried = 8 * direction.carried_bytes
        if not direction.unshaped and carried > RATE_EXCESS * direction.most_bits + 8 * BURST_BYTES:
            seconds = direction.sampled_s or 1.0
            yield (
                f"link {direction.link} from {direction.source} carried"
                f" {format_rate(carried / seconds)} where {format_rate(direction.most_bits / seconds)}"
                " was configured"
            )
    if tally.run and tally.run.mode != "simulate":
        for name, *ends in tally.run.links:
            for source in ends:
                known = tally.directions.get((name, source))
                if known is None or known.measured is None:
                    yield f"link {name} from {source} was never measured"


def _late_changes(tally: Tally) -> Iterator[str]:
    late = [d for d in tally.directions.values() if d.worst_late_s > LATE_CHANGE_S]
    if late:
        worst = max(late, key=lambda direction: direction.worst_late_s)
        yield (
            f"a change of link {worst.link} from {worst.source} came"
            f" {format_duration(worst.worst_late_s)} late (tolerance {format_duration(LATE_CHANGE_S)})"
        )


def _disorder(totals: Totals) -> Iterator[str]:
    broken = totals.broken.get("order")
    if broken:
        skew = format_duration(SKEW_S)
        yield f"{_count(broken.count, 'stamp')} out of order by more than {skew} ({_few(broken.texts)})"


def _dead_engines(tally: Tally) -> Iterator[str]:
    for engine in tally.engines.values():
        if engine.died:
            yield f"engine {engine.name} died ({engine.died.exit_status}): {engine.died.last_words}"


def _unverified(tally: Tally) -> Iterator[str]:
    run, compared = tally.run or _NOTHING_SAID, tally.verified.total()
    short = compared < tally.completed if run.verify_share == 1 else compared == 0 < tally.completed
    if run.verify_share > 0 and short:
        yield f"only {compared} of {tally.completed} outputs were verified (asked: {run.verify_share:.0%})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _few(texts: list[str]) -> str:
    return "; ".join(texts[:2]) + ("; ..." if len(texts) > 2 else "")


_NOTHING_SAID = RunStarted(
    at_s=0.0, scenario="", topology="", mode="", shaper="", model="", policy="",
    threshold_tokens=None, seed=0, duration_s=0.0,
)  # fmt: skip
