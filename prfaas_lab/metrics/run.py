"""A run's first event, made from what was asked for."""

from __future__ import annotations

from collections.abc import Mapping

from prfaas_lab.metrics.events import RunStarted
from prfaas_lab.spec.scenario import Resolved


def run_started(
    resolved: Resolved, *, at_s: float, mode: str, shaper: str, versions: Mapping[str, str]
) -> RunStarted:
    """What runs, with everything that a reader of `events.jsonl` needs to sum it up again."""
    scenario, topology = resolved.scenario, resolved.topology
    paced = scenario.engine.executor == "paced"
    return RunStarted(
        at_s=at_s,
        scenario=scenario.name,
        topology=topology.name,
        mode=mode,
        shaper=shaper,
        model="paced" if paced else scenario.model.path or scenario.model.name or "",
        policy=scenario.policy.name,
        threshold_tokens=scenario.policy.threshold,
        seed=scenario.seed,
        duration_s=scenario.duration * scenario.time_scale,
        warm_up_s=scenario.warm_up * scenario.time_scale,
        scale=scenario.scale,
        time_scale=scenario.time_scale,
        requests=scenario.workload.requests,
        compression=scenario.transport.compression,
        verify_share=0.0 if mode == "simulate" else scenario.verify.share,  # which has no outputs to verify
        verify_what="payload" if paced else "tokens",
        cpu_tolerance=scenario.tolerance.cpu,
        timer_lag_tolerance_s=scenario.tolerance.timer_lag,
        shaper_wait_tolerance=scenario.tolerance.shaper_wait,
        engine_wait_tolerance=scenario.tolerance.engine_wait,
        datacenters=tuple((name, site.role) for name, site in topology.datacenters.items()),
        engines=tuple(
            (engine, name, role)
            for name in topology.datacenters
            for engine, role in topology.engine_names(name).items()
        ),
        links=tuple((name, *link.between) for name, link in topology.links.items()),
        versions=tuple(versions.items()),
    )
