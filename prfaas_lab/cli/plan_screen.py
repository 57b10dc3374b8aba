"""How a plan reads in a terminal: tables of deployments, the paper's figures beside ours, a heat map."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from prfaas_lab import units
from prfaas_lab.errors import LabError
from prfaas_lab.planner.deployment import Deployment
from prfaas_lab.planner.paper import PaperReport, Row, is_case_study, table_6_rows
from prfaas_lab.planner.planning import Heat, PlanReport, ratios

_RAMP = ("#3b0f70", "#641a80", "#8c2981", "#b73779", "#de4968", "#f7705c", "#fe9f6d", "#fecf92")
_CELL = 7


def plan_screen(report: PlanReport, *, width: int = 100) -> Iterator[RenderableType]:
    """Everything `prfaas-lab plan FILE` prints."""
    yield _heading(report)
    yield deployments_table("Paper mode: T at the mean length", report.deployments)
    yield deployments_table("Exact mode: the mean of T, what a running system shows", report.exact)
    yield _limit(report)
    if is_case_study(report):
        yield rows_table("Table 6 of the paper beside ours (paper mode)", table_6_rows(report.deployments))
    if report.heat is not None:
        yield heat_map(report.heat, report.deployments["prfaas"], width=width)


def paper_screen(report: PaperReport) -> Iterator[RenderableType]:
    """Everything `prfaas-lab plan --paper` prints."""
    yield rows_table("Table 3: Phi_kv of six models on 8xH200", report.table3)
    yield rows_table("Table 5: Phi_kv of the internal 1T hybrid", report.table5)
    yield rows_table("Scale: egress that keeps a fleet busy (equation 2)", report.scale)
    for mode in ("paper", "exact"):
        yield rows_table(f"Table 6, {mode} mode", report.table6[mode])
        yield rows_table(f"Ablation, {mode} mode", report.ablation[mode])


def deployments_table(title: str, deployments: Mapping[Any, Deployment]) -> Table:
    """One column per policy; four of them fit in 80 columns."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1)
    )
    table.add_column("")
    for name in deployments:
        table.add_column(str(name), justify="right")
    for label, show in _LINES:
        cells = [show(one) for one in deployments.values()]
        if any(cell != "-" for cell in cells):
            table.add_row(label, *cells)
    if over := ratios(deployments):
        table.add_row("over homogeneous", *(f"{over[name]:.3f}" for name in deployments))
    return table


def rows_table(title: str, rows: Iterable[Row]) -> Table:
    """The paper's figure, ours, and the difference."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("paper", "ours", "difference"):
        table.add_column(name, justify="right")
    for row in rows:
        difference = "-" if row.difference is None else f"{row.difference:+.1%}"
        table.add_row(row.item, _figure(row.paper, row.unit), _figure(row.ours, row.unit), difference)
    return table


def heat_map(heat: Heat, best: Deployment, *, width: int = 100) -> RenderableType:
    """Lambda_max over thresholds (across) and N_p (down); the best cell is marked with *."""
    chosen = int(np.argmin(np.abs(heat.thresholds - (best.threshold_tokens or 0))))
    step = max(1, -(-len(heat.thresholds) * _CELL // (width - 6)))
    columns = range(chosen % step, len(heat.thresholds), step)
    lowest, highest = float(heat.rate.min()), float(heat.rate.max())
    lines = [Text("Lambda_max (req/s) over threshold t and N_p, paper mode", style="italic")]
    for row, n_p in enumerate(heat.n_p):
        line = Text(f"{n_p:>4}  ")
        for column in columns:
            rate = float(heat.rate[row, column])
            mark = "*" if n_p == best.n_p and column == chosen else " "
            line.append(f"{rate:>{_CELL - 2}.2f}{mark} ", style=_shade(rate, lowest, highest))
        lines.append(line)
    axis = "".join(f"{_tokens(float(heat.thresholds[column])):>{_CELL - 2}}  " for column in columns)
    return Group(*lines, Text(f" N_p  {axis}".rstrip()), Text("   t  = threshold in tokens"))


def save_heat_map(report: PlanReport, path: Path) -> None:
    """The heat map as an SVG file. Raises LabError when it cannot be drawn or written."""
    if path.suffix.lower() != ".svg":
        raise LabError(
            "the heat map is drawn as SVG", where=str(path), remedy="name a file that ends in .svg"
        )
    if report.heat is None:
        raise LabError("without a prfaas datacenter there is no threshold to map", where=str(path))
    width = 6 + _CELL * len(report.heat.thresholds)
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(heat_map(report.heat, report.deployments["prfaas"], width=width))
    try:
        path.write_text(console.export_svg(title=f"{report.name}: throughput"), "utf-8")
    except OSError as error:
        raise LabError(error.strerror or "cannot be written", where=str(path)) from error


def _heading(report: PlanReport) -> Text:
    sites = [
        f"{site.name}: {site.instances} x {site.profile.hardware}"
        for site in (*report.fleet.prfaas, *report.fleet.local)
    ]
    caps = [f"{cap.name}: {units.format_rate(cap.rate_bps)}" for cap in report.fleet.caps]
    workload = "the paper's workload (the file has none)" if report.workload_assumed else "its own workload"
    derived = sorted(
        {s.profile.hardware for s in (*report.fleet.prfaas, *report.fleet.local) if s.profile.prefill.derived}
    )
    note = f"\nderived, not measured: the prefill curve of {', '.join(derived)}" if derived else ""
    return Text(f"{report.name}, with {workload}\n{'; '.join(sites + caps)}{note}", style="bold")


def _limit(report: PlanReport) -> Text:
    bound = report.bound
    kind = "a threshold" if bound.is_threshold else "not a threshold"
    gaps = ", ".join(f"{name} {bound.shortfall(one.lambda_max):.2%}" for name, one in report.exact.items())
    return Text(
        f"Limit over all routings by length: {bound.lambda_max:.3f} req/s, {kind}, N_p "
        f"{sum(bound.n_p.values())}. Short of it (exact mode): {gaps}."
    )


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "bit/s":
        return units.format_rate(value)
    text = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
    return f"{text} {unit}".rstrip()


def _tokens(value: float) -> str:
    return f"{value / 1000:.3g}K" if value >= 1000 else f"{value:.0f}"


def _shade(rate: float, lowest: float, highest: float) -> str:
    part = (rate - lowest) / (highest - lowest) if highest > lowest else 1.0
    level = min(len(_RAMP) - 1, int(part * len(_RAMP)))
    return f"{'black' if level >= 5 else 'white'} on {_RAMP[level]}"


def _or_dash(show: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: "-" if value is None else show(value)


_TOKENS = _or_dash(lambda value: f"{value:,.0f}")
_RATE = _or_dash(lambda value: f"{value:.3f}")
_SECONDS = _or_dash(lambda value: f"{value:.3f}")
_LINES: tuple[tuple[str, Callable[[Deployment], str]], ...] = (
    ("Lambda_max (req/s)", lambda d: _RATE(d.lambda_max)),
    ("what binds", lambda d: d.bottleneck.replace("+", " + ")),
    ("threshold t (tokens)", lambda d: _TOKENS(d.threshold_tokens)),
    ("N_prfaas / N_p / N_d", lambda d: f"{d.n_prfaas}/{d.n_p}/{d.n_d}"),
    ("Theta_prfaas (req/s)", lambda d: _RATE(d.theta_prfaas)),
    ("Theta_pd-p (req/s)", lambda d: _RATE(d.theta_pd_p)),
    ("Theta_pd-d (req/s)", lambda d: _RATE(d.theta_pd_d)),
    ("p, share offloaded", lambda d: f"{d.p:.1%}"),
    ("l_long (tokens)", lambda d: _TOKENS(d.l_long)),
    ("l_short (tokens)", lambda d: _TOKENS(d.l_short)),
    ("egress (with headers)", lambda d: units.format_rate(d.egress_bps) if d.egress_bps else "-"),
    ("mean TTFT (s)", lambda d: _SECONDS(d.mean_ttft_s)),
    ("P90 TTFT (s)", lambda d: _SECONDS(d.p90_ttft_s)),
    ("TPOT (ms)", lambda d: f"{d.tpot_s * 1e3:.3g}"),
    ("USD per hour", lambda d: _or_dash(lambda v: f"{v:,.2f}")(d.usd_per_hour)),
    ("requests per USD", lambda d: _or_dash(lambda v: f"{v:,.1f}")(d.requests_per_usd)),
)
