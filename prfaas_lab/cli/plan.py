"""`prfaas-lab plan`: the best roles and threshold of a deployment, and the paper's tables recomputed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console

from prfaas_lab import units
from prfaas_lab.cli.asked import found, writable
from prfaas_lab.cli.plan_screen import paper_screen, plan_screen, save_heat_map
from prfaas_lab.errors import UnitError
from prfaas_lab.planner.deployment import PolicyName
from prfaas_lab.planner.paper import recompute
from prfaas_lab.planner.planning import BASELINES
from prfaas_lab.planner.planning import plan as plan_of
from prfaas_lab.planner.setting import Extensions, Network, PrefixHits, Prices, Queueing, Slo

_BEYOND = "Beyond the paper (off unless given)"


def plan(
    file: Annotated[Path | None, typer.Argument(help="A topology or scenario file.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Recompute the paper's tables.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    against: Annotated[
        str, typer.Option(metavar="POLICIES", help="Baselines to plan too, separated by commas.")
    ] = ",".join(BASELINES),
    heatmap: Annotated[Path | None, typer.Option(help="Save the map over (t, N_p) as this SVG file.")] = None,
    hit_rate: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of requests with a prefix hit.", rich_help_panel=_BEYOND),
    ] = 0.0,
    reused: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a prompt that a hit saves.", rich_help_panel=_BEYOND)
    ] = 0.5,
    rtt: Annotated[
        str | None, typer.Option(help="Round trip between sites, e.g. 20ms.", rich_help_panel=_BEYOND)
    ] = None,
    handshakes: Annotated[
        float, typer.Option(min=0, help="Round trips to open a connection.", rich_help_panel=_BEYOND)
    ] = 0.0,
    streams: Annotated[
        int | None, typer.Option(min=1, help="TCP connections per instance.", rich_help_panel=_BEYOND)
    ] = None,
    load: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="TTFT with queueing, at this part of Lambda_max.", rich_help_panel=_BEYOND
        ),
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(help="HARDWARE=USD per GPU and hour; repeat.", rich_help_panel=_BEYOND)
    ] = None,
    egress_price: Annotated[
        float, typer.Option(min=0, help="USD per GB that leaves a prfaas site.", rich_help_panel=_BEYOND)
    ] = 0.0,
    ttft_p90: Annotated[
        str | None, typer.Option(help="SLO on the 90th percentile of TTFT, e.g. 3s.", rich_help_panel=_BEYOND)
    ] = None,
    tpot: Annotated[
        str | None, typer.Option(help="SLO on the time per output token, e.g. 25ms.", rich_help_panel=_BEYOND)
    ] = None,
) -> None:
    """Plan a deployment: threshold, prefill and decode instances, throughput, and what binds."""
    if paper == (file is not None):
        raise typer.BadParameter("give a topology or scenario file, or --paper")
    if load is not None and load >= 1:
        raise typer.BadParameter("--load lies below 1: at all of Lambda_max a queue grows without end")
    console = Console()
    if paper:
        tables = recompute()
        _show(console, as_json, tables.as_dict(), paper_screen(tables))
        return
    extensions = Extensions(
        hits=PrefixHits(hit_rate=hit_rate, reused=reused) if hit_rate else None,
        network=_network(rtt, handshakes, streams),
        queueing=None if load is None else Queueing(load=load),
        prices=_prices(price, egress_price),
        slo=Slo(ttft_p90_s=_seconds("--ttft-p90", ttft_p90), tpot_s=_seconds("--tpot", tpot)),
    )
    assert file is not None  # checked above
    heatmap = writable(heatmap)
    report = plan_of(found(file), against=_policies(against), extensions=extensions)
    if heatmap is not None:
        save_heat_map(report, heatmap)
    _show(console, as_json, report.as_dict(), plan_screen(report, width=console.width))


def _show(console: Console, as_json: bool, values: dict[str, Any], screen: Any) -> None:
    if as_json:
        typer.echo(json.dumps(_finite(values), indent=2))
        return
    for part in screen:
        console.print(part)


def _finite(value: Any) -> Any:
    """JSON has no infinity: an unstable queue's TTFT becomes null."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _policies(text: str) -> list[PolicyName]:
    known: dict[str, PolicyName] = {name: name for name in get_args(PolicyName)}
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in known:
            raise typer.BadParameter(f"--against: no policy {word!r} (have: {', '.join(known)})")
    return [known[word] for word in words]


def _network(rtt: str | None, handshakes: float, streams: int | None) -> Network | None:
    rtt_s = _seconds("--rtt", rtt)
    if rtt_s is None:
        if streams is not None or handshakes:
            raise typer.BadParameter("--streams and --handshakes need --rtt")
        return None
    return Network(rtt_s=rtt_s, handshake_rtts=handshakes, streams=streams)


def _prices(prices: list[str] | None, egress_usd: float) -> Prices | None:
    if not prices:
        if egress_usd:
            raise typer.BadParameter("--egress-price needs --price too")
        return None
    hourly: dict[str, float] = {}
    for text in prices:
        hardware, _, usd = text.rpartition("=")
        try:
            hourly[hardware] = float(usd)
        except ValueError:
            hourly[hardware] = -1.0
        if not hardware or not 0 <= hourly[hardware] < math.inf:
            raise typer.BadParameter(f"--price {text!r}: write it as 8xH200=2.50")
    return Prices(gpu_hour_usd=hourly, egress_gb_usd=egress_usd)


def _seconds(option: str, text: str | None) -> float | None:
    try:
        return None if text is None else units.parse_duration(text)
    except UnitError as error:
        raise typer.BadParameter(f"{option}: {error}") from error
