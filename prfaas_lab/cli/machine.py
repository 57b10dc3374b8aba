"""`doctor`, `link-test` and `clean`: about this machine and the network it can emulate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prfaas_lab.cli.asked import found
from prfaas_lab.cli.working import working
from prfaas_lab.fabric.doctor import Report, examine
from prfaas_lab.fabric.link_test import LinkTest
from prfaas_lab.fabric.link_test import link_test as test_links
from prfaas_lab.fabric.measure import LinkMeasurement
from prfaas_lab.fabric.ownership import clean as clean_up
from prfaas_lab.fabric.self_test import SelfTest, self_test
from prfaas_lab.fabric.userns import reexec_in_userns
from prfaas_lab.spec.load import load_topology
from prfaas_lab.units import format_duration, format_rate

_COLOURS = {"ok": "green", "warning": "yellow", "missing": "red"}
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
ShaperName = Annotated[str, typer.Option("--shaper", help="auto, netem, tun or relay.")]


def doctor(
    as_json: AsJson = False,
    quick: Annotated[bool, typer.Option("--quick", help="Only look; skip the ten-second self-test.")] = False,
) -> None:
    """Say what this machine can do, what will be used, and what would make it better.

    Ends with a ten-second self-test of the shaper that runs would use: a round trip, a rate, and a
    change of rate, each measured. Exits with 1 when the shaper is not to be believed here.
    """
    report = examine()  # of the machine as it is: only the self-test needs a namespace of ours
    reexec_in_userns()
    if not as_json:
        _print_report(report)
    tested = None if quick else _tested(report.shaper)
    if as_json:
        typer.echo(json.dumps({**asdict(report), "self_test": asdict(tested) if tested else None}, indent=2))
    elif tested:
        _print_self_test(tested)
    if tested and tested.problems:
        raise typer.Exit(1)


def link_test(
    topology: Annotated[Path, typer.Argument(metavar="TOPOLOGY", help="A topology file.")],
    as_json: AsJson = False,
    shaper: ShaperName = "auto",
    scale: Annotated[
        float, typer.Option(min=1e-9, max=1.0, help="Shrink bandwidth, as a scenario's scale does.")
    ] = 0.001,
) -> None:
    """Bring a topology's links up, measure every direction, and compare with the file.

    Exits with 1 when a link is off by more than the tolerance (rate 5 %, RTT 5 % and 1 ms).
    """
    reexec_in_userns()
    asked = load_topology(found(topology, "topologies"))
    engines = sum(len(asked.engine_names(name)) for name in asked.datacenters)
    with working(f"bringing up {len(asked.links)} links and {engines} engines' namespaces, and measuring"):
        result = test_links(asked, shaper=shaper, scale=scale)
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=2))
    else:
        _print_links(result)
    if result.problems:
        raise typer.Exit(1)


def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove what killed runs left: namespaces, processes, sockets. Nothing else is touched.

    A run that ends by itself, by Ctrl-C or by SIGTERM leaves nothing. What is removed here is what
    the journal of a run whose process is gone names; never anything by the look of its name.
    """
    left = clean_up(all_dead=not dry_run)
    verb = "would remove" if dry_run else "removed"
    for what in left:
        typer.echo(f"{verb} {what}")
    if not left:
        typer.echo("nothing was left behind")


def _tested(shaper: str) -> SelfTest:
    with working(f"testing {shaper} for ten seconds"):
        return self_test(shaper)


def _print_report(report: Report) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for finding in report.findings:
        verdict = f"[{_COLOURS[finding.verdict]}]{finding.verdict}[/]"
        remedy = f"\n[dim]{escape(finding.remedy)}[/]" if finding.remedy else ""
        table.add_row(finding.name, verdict, escape(finding.value) + remedy)
    console = Console()
    console.print(table)
    because = f" ({escape(report.reason)})" if report.reason else ""
    console.print(f"\nLinks will be shaped by [bold]{report.shaper}[/]{because}: {escape(report.means)}.")


def _print_self_test(tested: SelfTest) -> None:
    console, step = Console(), tested.step
    console.print("\nSelf-test: 20 Mbit/s and 10 ms each way, then 10 Mbit/s.")
    console.print(_links_table(tested.links))
    console.print(
        f"rate step: {format_rate(step.measured_before_bps)}, then {format_rate(step.measured_after_bps)} "
        f"on the wire; applied in {format_duration(step.applied_in_s)}"
    )
    _print_problems(console, tested.problems)


def _print_links(result: LinkTest) -> None:
    console = Console()
    because = f" ({escape(result.reason)})" if result.reason else ""
    console.print(f"shaper: {result.shaper}{because}; bandwidth times {result.scale:g}")
    console.print(_links_table(result.measurements))
    _print_problems(console, result.problems)


def _links_table(measurements: Sequence[LinkMeasurement]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("link")
    for name in ("configured", "achievable", "goodput", "RTT configured", "RTT measured"):
        table.add_column(name, justify="right")
    for each in measurements:
        table.add_row(
            f"{each.link} {each.source} -> {each.destination}",
            _rate_or_none(each.configured_bps),
            _rate_or_none(each.expected_bps),
            format_rate(each.goodput_bps),
            format_duration(each.configured_rtt_s),
            format_duration(each.rtt_s),
        )
    return table


def _rate_or_none(rate_bps: float | None) -> Any:
    return "unshaped" if rate_bps is None else format_rate(rate_bps)


def _print_problems(console: Console, problems: Sequence[str]) -> None:
    for problem in problems:
        console.print(f"[red]off its spec:[/] {escape(problem)}")
    if not problems:
        console.print("[green]all within tolerance[/]")
