"""The summary of a run, under the names of `vllm bench serve` where it has one (facts.md)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prfaas_lab.metrics.fidelity import judge
from prfaas_lab.metrics.percentiles import Samples, Statistics
from prfaas_lab.metrics.resources import CpuUse, Direction, Engine
from prfaas_lab.metrics.tally import Tally
from prfaas_lab.metrics.totals import Totals

Json = dict[str, Any]
"""What `json.dumps(..., allow_nan=False)` takes; what is undefined is None."""


def summarize(tally: Tally) -> Json:
    """The summary of a run that is over. Latencies and throughputs are those of completed requests."""
    totals = tally.totals()
    fidelity = judge(tally, totals)
    return {
        **_identity(tally),
        "fidelity": {"verdict": fidelity.verdict, "reasons": list(fidelity.reasons)},
        **_counts(tally),
        **_throughput(tally, totals),
        **_latencies(tally, totals),
        "steady": totals.steady.summary(tally.window),
        "handover": _handover(totals),
        "verify": _verify(tally),
        "transport": _transport(tally, totals),
        "cache": tally.caches.report(tally.sites),
        "links": {name: _link(tally, name) for name in _link_names(tally)},
        "engines": {name: _engine(tally, engine) for name, engine in sorted(tally.engines.items())},
        "shaper_process": _cpu_use(tally.shaper_process),
        "machine": {
            "mean_cpu_fraction": tally.machine.cpu.statistics().mean,
            "p99_timer_lag_ms": _ms(tally.machine.timer_lag.percentile(99)),
            "bunched_token_fraction": tally.bunched_fraction,
        },
        "failures": _failures(totals),
        "versions": dict(tally.run.versions) if tally.run else {},
    }


def _identity(tally: Tally) -> Json:
    run = tally.run
    return {
        "scenario": run.scenario if run else None,
        "topology": run.topology if run else None,
        "mode": run.mode if run else None,
        "shaper": run.shaper if run else None,
        "model": run.model if run else None,
        "policy": tally.policy,
        "threshold_tokens": tally.threshold_tokens,
        "seed": run.seed if run else None,
        "scale": run.scale if run else None,
        "time_scale": run.time_scale if run else None,
    }


def _counts(tally: Tally) -> Json:
    return {
        "submitted": tally.submitted,
        "completed": tally.completed,
        "failed": tally.failed,
        "in_flight": tally.in_flight,
        "offload_fraction": _ratio(tally.offloaded, tally.routed),
        "duration": tally.duration_s,
    }


def _throughput(tally: Tally, totals: Totals) -> Json:
    inputs, outputs = totals.input_tokens, totals.output_tokens
    return {
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "total_cached_tokens": totals.cached_tokens,
        "total_kvcache_bytes": totals.kvcache_bytes,
        "request_throughput": _ratio(totals.completed, tally.duration_s),
        "output_throughput": _ratio(outputs, tally.duration_s),
        "total_token_throughput": _ratio(inputs + outputs, tally.duration_s),
    }


def _latencies(tally: Tally, totals: Totals) -> Json:
    return {
        **_named("ttft_ms", totals.ttft_ms.statistics()),
        **_named("tpot_ms", totals.tpot_ms.statistics()),
        **_named("itl_ms", tally.itl_ms.statistics()),
        **_named("e2el_ms", totals.e2el_ms.statistics()),
    }


def _named(what: str, statistics: Statistics) -> Json:
    return {f"{which}_{what}": value for which, value in asdict(statistics).items()}


def _handover(totals: Totals) -> Json:
    """Mean and p90 of every leg in ms: over all, and apart for offloaded and local requests."""
    return {
        name: {"requests": legs.requests, **{leg: _leg(samples) for leg, samples in legs.samples.items()}}
        for name, legs in totals.legs.items()
    }


def _leg(samples: Samples) -> Json:
    statistics = samples.statistics()
    return {"mean": statistics.mean, "p90": statistics.p90}


def _verify(tally: Tally) -> Json:
    """Mismatches are faults; outputs that differ where KVCache crosses in a lossy form are not. The shares
    are of the outputs that are the same in every token, and of tokens that are the same at the same place;
    None where no tokens were compared."""
    what, outcomes = tally.run.verify_what if tally.run else None, tally.verified
    with_tokens = outcomes.total() if tally.compared_tokens else 0
    return {
        "what": what,
        "compared": outcomes.total(),
        "mismatched": outcomes["mismatch"],
        "differing": outcomes["differs"],
        "ties": outcomes["tie"],
        "output_agreement": _ratio(outcomes["match"], with_tokens),
        "token_agreement": _ratio(tally.equal_tokens, tally.compared_tokens),
    }


def _transport(tally: Tally, totals: Totals) -> Json:
    """KVCache of completed requests on the wire; the ratio is its size to that, 1 as it is."""
    return {
        "compression": tally.run.compression if tally.run else None,
        "wire_bytes": totals.wire_bytes,
        "compression_ratio": _ratio(totals.kvcache_bytes, totals.wire_bytes),
    }


def _link_names(tally: Tally) -> list[str]:
    planned = [name for name, *_ in tally.run.links] if tally.run else []
    return list(dict.fromkeys([*planned, *(link for link, _ in tally.directions)]))


def _link(tally: Tally, name: str) -> Json:
    """Both directions, and the figures of the one that carried more as the link's own."""
    directions = {source: d for (link, source), d in tally.directions.items() if link == name}
    each = {source: _direction(tally, direction) for source, direction in directions.items()}
    busiest = max(each, key=lambda source: each[source]["bytes"], default=None)
    main = each[busiest] if busiest else dict.fromkeys(_DIRECTION_KEYS)
    return {
        "bytes": sum(direction["bytes"] for direction in each.values()),
        **{key: main[key] for key in _DIRECTION_KEYS},
        "busiest_source": busiest,
        "directions": each,
    }


_DIRECTION_KEYS = (
    "mean_bps", "utilization", "configured_bps", "measured_bps", "measured_rtt_ms", "egress_estimate_error",
    "egress_estimates",
)  # fmt: skip


def _direction(tally: Tally, direction: Direction) -> Json:
    measured = direction.measured
    return {
        "bytes": direction.carried_bytes,
        "packets": direction.carried_packets,
        "dropped": direction.dropped_packets,
        "retransmitted": direction.retransmitted_segments,
        "mean_bps": _ratio(8 * direction.carried_bytes, tally.duration_s),
        "peak_bps": direction.peak_bps,
        "utilization": direction.utilization,
        "configured_bps": direction.configured_bps,
        "measured_bps": measured.measured_bps if measured else None,
        "configured_rtt_ms": measured.configured_rtt_ms if measured else None,
        "measured_rtt_ms": measured.measured_rtt_ms if measured else None,
        "egress_estimate_error": _ratio(direction.estimate_errors, direction.estimates),
        "egress_estimates": direction.estimates,
        "changes": direction.changes,
        "worst_change_late_ms": 1e3 * direction.worst_late_s,
    }


def _engine(tally: Tally, engine: Engine) -> Json:
    started = engine.started
    return {
        "role": started.role if started else None,
        "datacenter": started.datacenter if started else None,
        "netns": started.netns if started else None,
        "pid": started.pid if started else None,
        "busy_fraction": engine.busy_fraction(tally.started_s or 0.0),
        **_cpu_use(engine.cpu),
        "tokens": engine.tokens,
        "died": engine.died.exit_status if engine.died else None,
    }


def _cpu_use(use: CpuUse) -> Json:
    return {"cpu_fraction": use.cpu_fraction, "wait_fraction": use.wait_fraction}


def _failures(totals: Totals) -> list[Json]:
    """Failures by stage and cause, the commonest first, with the reason of the first of them."""
    return [
        {"stage": stage, "reason": totals.first_failures[stage, kind], "count": count}
        for (stage, kind), count in totals.failures.most_common(20)
    ]


def _ms(value_s: float | None) -> float | None:
    return None if value_s is None else 1e3 * value_s


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
