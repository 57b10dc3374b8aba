"""`scenario`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prfaas_lab.cli.asked import CacheOption, found, fresh_directory, overridden
from prfaas_lab.cli.ended import check
from prfaas_lab.dashboard.live import screen_for
from prfaas_lab.dashboard.table import print_summary
from prfaas_lab.engine.corruption import Corruption
from prfaas_lab.fabric.userns import reexec_in_userns
from prfaas_lab.lab.deployment import Options
from prfaas_lab.lab.run import run_scenario
from prfaas_lab.spec.load import load_scenario

_SIGNAL_STATUS = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143}


def scenario(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The scenario, e.g. scenarios/bursty.yaml.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the results go.", show_default="runs/<time>-<name>")
    ] = None,
    headless: Annotated[
        bool, typer.Option("--headless", help="No dashboard: a line every few seconds (also when piped).")
    ] = False,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Route by this policy instead, e.g. local-only, remote-all, prfaas, earliest-finish."
        ),
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(help="Offload prompts with more uncached tokens than this, e.g. 2K.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Another workload and network of the same kind.")
    ] = None,
    cache: CacheOption = None,
    compression: Annotated[
        str | None,
        typer.Option(help="How KVCache crosses: as it is, lossless or lossy.", metavar="none|zstd|int8"),
    ] = None,
    shaper: Annotated[
        str, typer.Option(help="How links are shaped: auto, netem, tun or relay (see prfaas-lab doctor).")
    ] = "auto",
    allow_unfaithful: Annotated[
        bool,
        typer.Option(
            "--allow-unfaithful",
            help="Run even when the measured links are off their spec; the verdict says so.",
        ),
    ] = False,
    corrupt: Annotated[Corruption | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run a scenario: bring up its datacenters, drive its workload, show it live, sum it up.

    Ctrl-C stops sending and drains; a second one stops at once. Either way nothing is left behind.
    Exits with 0 when every request was served and the check on their tokens held, 1 when not,
    2 when a file is wrong.

    \b
    Next: prfaas-lab scenario scenarios/bursty.yaml --policy local-only
          prfaas-lab validate scenarios/*.yaml
    """
    reexec_in_userns()
    read = load_scenario(found(file))
    resolved = overridden(
        read, policy=policy, threshold=threshold, seed=seed, cache=cache, compression=compression
    )
    options = Options(
        out=out or fresh_directory(resolved.scenario.name),
        shaper=shaper,
        allow_unfaithful=allow_unfaithful,
        corrupt=corrupt,
    )
    outcome = run_scenario(resolved, options, lambda ledger: screen_for(ledger, headless=headless))
    print_summary(outcome.summary, files=str(options.out))
    if outcome.stopped is not None:
        raise typer.Exit(_SIGNAL_STATUS[outcome.stopped])
    check(outcome.summary, remedy="see requests.jsonl and the engines' logs beside the summary")
