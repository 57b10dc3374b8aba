"""The links on the screen: a row each, or a chart each where there is room."""

from __future__ import annotations

from rich.text import Text

from prfaas_lab.dashboard import style as st
from prfaas_lab.dashboard.glyphs import Glyphs, Point, ceiling_bps, chart, sparkline
from prfaas_lab.dashboard.state import LinkTrace, ScreenState

CHART_ROWS = 14
"""A taller chart tells no more."""
_AXIS = 9


def links(state: ScreenState, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    """Every direction of every link in `rows` lines: a sparkline each, or the busiest where they are
    too many, and charts of those that carry something where there is room."""
    traces = list(state.links.values())
    if not traces:
        return [st.title("links", "", width, glyphs), st.line((" none", st.LABEL))][:rows]
    table = _rows(traces, width, rows, glyphs)
    peak_bps = max(trace.peak_bps for trace in traces)
    used = [trace for trace in traces if trace.peak_bps > peak_bps / 10]  # acknowledgements are less
    height = min(CHART_ROWS, (rows - len(table)) // len(used) - 1) if used else 0
    if height < 3:
        return table
    return [*table, *(row for trace in used for row in _charted(trace, width, height, glyphs))]


def _rows(traces: list[LinkTrace], width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    longest = max(len(_way(trace, glyphs)) for trace in traces)
    names = max(6, min(longest, 26, width - 57))
    spark = max(0, width - names - 50)
    recent = f"{'recent rates':<{spark}}"
    heads = f"{'now':>9} {'configured':>10} {recent} {'RTT':>7} {'xfer':>4} {'drops':>5} {'queued':>7}"
    shown = traces[: rows - 1]
    if len(traces) > len(shown):
        busiest = sorted(traces, key=lambda trace: -(trace.rate.per_s or 0.0))
        shown = busiest[: max(0, rows - 2)]
    lines = [_row(trace, names, spark, glyphs) for trace in shown]
    if len(shown) < len(traces):
        lines.append(st.line((f" ... and {len(traces) - len(shown)} quieter directions", st.LABEL)))
    return [st.title("links", heads, width, glyphs), *lines][:rows]


def _row(trace: LinkTrace, names: int, spark: int, glyphs: Glyphs) -> Text:
    dropped = trace.sample.dropped_total if trace.sample else 0
    queued = trace.sample.backlog_bytes if trace.sample else None
    return st.line(
        (f" {st.cut(_way(trace, glyphs), names):<{names}} ", st.NAME),
        (f"{st.rate(trace.rate.per_s):>9}", _style(trace)),
        f" {_configured(trace):>10} ",
        (sparkline(list(trace.points), spark, glyphs), _style(trace)),
        f" {st.milliseconds(trace.rtt_ms):>7} {trace.transfers:>4} ",
        (f"{st.number(dropped):>5}", st.WARN if dropped else ""),
        f" {st.size(queued):>7}",
    )


def _charted(trace: LinkTrace, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    points = list(trace.points)[-(width - _AXIS - 1) :]
    rows = chart(points, width - _AXIS - 1, height, glyphs)
    axis = [st.rate(ceiling_bps(points)) if points else "", *[""] * (height - 2), "0"]
    drawn = [
        st.line((f" {label:>{_AXIS - 1}} ", st.LABEL), (row, _style(trace)))
        for label, row in zip(axis, rows, strict=True)
    ]
    caption = st.line((f" {_name(trace, glyphs)} ", st.NAME), (_legend(trace, points, glyphs), st.LABEL))
    return [caption, *drawn]


def _legend(trace: LinkTrace, points: list[Point], glyphs: Glyphs) -> str:
    if trace.configured_bps is None:
        return " rate (unshaped)"
    if trace.configured_bps > ceiling_bps(points):
        return f" rate (the configured {_configured(trace)} is off the scale)"
    return f" rate, and the configured one as {glyphs.cap * 3}"


def _way(trace: LinkTrace, glyphs: Glyphs) -> str:
    """A direction named shortly: a link has two ends, so where it leads tells which is meant."""
    return f"{trace.link}{glyphs.arrow}{trace.destination}" if trace.destination else _name(trace, glyphs)


def _name(trace: LinkTrace, glyphs: Glyphs) -> str:
    way = f" {trace.source}{glyphs.arrow}{trace.destination}" if trace.destination else f" {trace.source}"
    return trace.link + way


def _configured(trace: LinkTrace) -> str:
    if trace.sample is None and trace.measured is None:
        return "-"
    return "unshaped" if trace.configured_bps is None else st.rate(trace.configured_bps)


def _style(trace: LinkTrace) -> str:
    """Red in an outage, yellow when nearly full, green otherwise."""
    if trace.configured_bps is None:
        return st.GOOD
    if trace.configured_bps == 0:
        return st.BAD
    return st.load_style((trace.rate.per_s or 0.0) / trace.configured_bps)
