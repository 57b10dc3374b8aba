"""`cache-report`: what the prefix caches of a run did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from prfaas_lab.errors import LabError
from prfaas_lab.metrics.codec import read_events
from prfaas_lab.metrics.tally import Tally
from prfaas_lab.units import format_size


def cache_report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory (--out).")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what the prefix caches of a run found, saved, copied and threw away.

    \b
    Next: prfaas-lab scenario scenarios/multi-turn.yaml --out runs/chats
          prfaas-lab cache-report runs/chats
    """
    events = run / "events.jsonl"
    if not events.is_file() and (run / "summary.json").is_file():
        remedy = "simulate it with --events"
        raise LabError("has no events.jsonl, which the report is made of", where=str(run), remedy=remedy)
    if not events.is_file():
        raise LabError("holds no run", where=str(run), remedy="give the directory a run was written to")
    tally = Tally.of(read_events(events))
    report = tally.caches.report(tally.sites)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    console = Console()
    if not report["kept"]:
        console.print("No engine of this run had a prefix cache: set `cache:` in the topology's datacenters.")
    console.print(_table(report))
    console.print(
        f"{report['copies']} prefixes copied between engines ({format_size(report['copied_bytes'])}), "
        f"{report['answers']} answers handed from decode to prefill ({format_size(report['answer_bytes'])}); "
        f"{format_size(report['held_bytes'])} of KVCache need not cross, for the decode engine had them"
    )


_ROWS = {
    "requests": "prefills",
    "hits": "  with a hit",
    "hit_rate_requests": "  share",
    "cached_tokens": "prompt tokens found",
    "decoded_tokens": "  computed by decode",
    "computed_tokens": "  to be computed",
    "hit_rate_tokens": "  share found",
    "held_bytes": "KVCache not sent again",
    "memory_bytes": "held at the end, in memory",
    "disk_bytes": "  on disk",
    "blocks": "  blocks",
    "snapshots": "  snapshots",
    "snapshots_made": "snapshots made",
    "snapshot_efficiency": "  ever resumed from",
    "evicted_blocks": "evicted blocks",
    "evicted_snapshots": "evicted snapshots",
    "spilled": "spilled to disk",
    "reloaded": "  read back",
    "disk_hit_tokens": "  tokens found thanks to it",
    "damaged": "damaged",
    "transfers_made": "transfer-cache entries",
    "transfer_peak_bytes": "  most at a time",
    "transfers_refused": "  found no room",
}


def _table(report: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("all", *report["datacenters"]):
        table.add_column(name, justify="right", no_wrap=True)
    columns = [report, *report["datacenters"].values()]
    for key, label in _ROWS.items():
        table.add_row(label, *(_cell(key, column[key]) for column in columns))
    return table


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key.endswith("_bytes"):
        return format_size(int(value))
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
