"""The parts of the screen, each as lines of text for a given width and number of rows."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from rich.text import Text

from prfaas_lab.dashboard import style as st
from prfaas_lab.dashboard.glyphs import Glyphs
from prfaas_lab.dashboard.log import LogLine
from prfaas_lab.dashboard.progress import Progress, progress
from prfaas_lab.dashboard.state import EngineTrace, ScreenState
from prfaas_lab.metrics.handover import LEGS
from prfaas_lab.metrics.percentiles import Statistics
from prfaas_lab.metrics.requests import RequestRecord
from prfaas_lab.metrics.windows import Figures

Lines = list[Text]


def header(state: ScreenState, width: int, glyphs: Glyphs) -> Lines:
    """What runs, and how far it is."""
    run, how = state.tally.run, progress(state)
    what = ["waiting for the run"]
    if run is not None:
        what = [f"{run.scenario} on {run.topology}", run.mode, f"{run.shaper} shaper", run.model]
    left = st.line(("prfaas-lab  ", st.TITLE), f" {glyphs.dot} ".join(what))
    phase = st.line((how.phase.upper(), st.GOOD if how.phase in ("running", "done") else st.WARN))
    return [_both_ends(left, phase, width), _progress_line(state, how, width, glyphs)]


def _both_ends(left: Text, right: Text, width: int) -> Text:
    return st.fitted(left, width - right.cell_len - 1).append(" ").append_text(right)


def _progress_line(state: ScreenState, how: Progress, width: int, glyphs: Glyphs) -> Text:
    words = _steps(state, glyphs) if how.phase == "starting" else st.line(_times(how))
    if state.machine is not None:
        cpu = state.machine.cpu_fraction
        words.append(f"  cpu {cpu:.0%}", st.WARN if cpu >= 0.95 else st.LABEL)
    room = max(8, width - words.cell_len - 2)
    share = how.fraction
    drawn = (
        st.line((glyphs.rule * room, st.LABEL)) if share is None else st.meter(share, room, st.GOOD, glyphs)
    )
    return st.line(drawn, "  ", words)


def _times(how: Progress) -> str:
    words = [f"{how.words}  "] if how.words else []
    words.append(st.clock(how.elapsed_s))
    if how.whole_s is not None:
        words.append(f" of {st.clock(how.whole_s)}")
    if how.left_s is not None:
        words.append(f", {st.clock(how.left_s)} left")
    return "".join(words)


def _steps(state: ScreenState, glyphs: Glyphs) -> Text:
    words = st.line(f"{st.clock(state.now_s)} ")
    for name, done, total in state.steps():
        over = total is not None and done is not None and done >= total
        begun = name in state.phases or bool(done)
        mark, style = (
            (glyphs.done, st.GOOD) if over else (glyphs.doing, st.WARN) if begun else (glyphs.dot, st.LABEL)
        )
        count = f" {done}/{total}" if total and total > 1 and not over else ""
        words.append(f" {mark} {name}{count}", style)
    return words


# -- engines -----------------------------------------------------------------------------------


def engines(state: ScreenState, width: int, rows: int, glyphs: Glyphs) -> Lines:
    """One row per engine, or per datacenter and role where they are too many."""
    bars = max(6, width - 56)
    heads = f"{'queue':>6} {'run':>5} {'token/s':>8}  {'busy':<{bars + 5}}"
    traces = list(state.engines.values())
    if len(traces) + 1 <= rows:
        lines = [_engine_row(trace, bars, glyphs) for trace in traces]
    else:
        groups = groupby(sorted(traces, key=_group), key=_group)
        lines = [_group_row(site, role, list(group), bars, glyphs) for (site, role), group in groups]
    if not lines:
        lines = [st.line((" none yet", st.LABEL))]
    return [st.title("engines", heads, width, glyphs), *_at_most(lines, rows - 1)]


def _group(trace: EngineTrace) -> tuple[str, str]:
    return trace.datacenter, trace.role


def _engine_row(trace: EngineTrace, bars: int, glyphs: Glyphs) -> Text:
    row = st.line((f" {st.cut(trace.name, 18):<18} ", st.NAME), f"{trace.role:<7} ")
    if trace.died:
        return row.append(f"{glyphs.wrong} died", st.BAD)
    if trace.sample is None:
        return row.append(f"{glyphs.done} ready" if trace.ready else f"{glyphs.dot} not ready yet", st.LABEL)
    sample = trace.sample
    return row.append_text(
        _load(sample.queued, sample.running, trace.tokens.per_s, trace.busy.per_s, bars, glyphs)
    )


def _group_row(site: str, role: str, traces: list[EngineTrace], bars: int, glyphs: Glyphs) -> Text:
    samples = [trace.sample for trace in traces if trace.sample is not None]
    died, ready = sum(trace.died for trace in traces), sum(trace.ready for trace in traces)
    row = st.line((f" {st.cut(site, 12):<12} x{len(traces):<4} ", st.NAME), f"{role:<7} ")
    if not samples:
        return row.append(f"{ready} of {len(traces)} ready", st.LABEL)
    busy = [trace.busy.per_s or 0.0 for trace in traces]
    tokens = sum(trace.tokens.per_s or 0.0 for trace in traces)
    queued, running = sum(sample.queued for sample in samples), sum(sample.running for sample in samples)
    row.append_text(_load(queued, running, tokens, sum(busy) / len(busy), bars, glyphs))
    return row.append(f" {glyphs.wrong} {died} died", st.BAD) if died else row


def _load(
    queued: int, running: int, tokens: float | None, busy: float | None, bars: int, glyphs: Glyphs
) -> Text:
    share = min(1.0, max(0.0, busy or 0.0))
    return st.line(
        (f"{queued:>6}", st.WARN if queued else ""),
        f" {running:>5} {st.number(tokens):>8}  ",
        st.meter(share, bars, st.load_style(share), glyphs),
        f" {share:>4.0%}",
    )


def _at_most(lines: Lines, rows: int) -> Lines:
    if len(lines) <= rows:
        return lines
    hidden = len(lines) - max(0, rows - 1)
    return [*lines[: max(0, rows - 1)], st.line((f" ... and {hidden} more", st.LABEL))][: max(0, rows)]


# -- latency, requests -------------------------------------------------------------------------


def latency(state: ScreenState, width: int, glyphs: Glyphs) -> Lines:
    """TTFT, TPOT, ITL and throughput, lately and over the whole run."""
    lately, whole = state.windows.last(state.now_s), state.windows.whole()
    column = max(6, min(9, (width - 22) // 8))
    heads = "".join(f"{head:>{column}}" for head in ("mean", "p50", "p90", "p99"))
    rule = glyphs.rule
    top = st.line(
        (f"{rule} ", st.LABEL), (f"{'last 10 s':<9}", st.TITLE), (heads, st.LABEL),
        (f" {rule} ", st.LABEL), ("whole run", st.TITLE), (heads[1:], st.LABEL),
    )  # fmt: skip
    rows = (
        ("TTFT", lately.ttft_ms, whole.ttft_ms),
        ("TPOT", lately.tpot_ms, whole.tpot_ms),
        ("ITL", lately.itl_ms, whole.itl_ms),
    )
    lines = [
        st.line((f" {name:<10}", st.NAME), _times_of(recent, column), " " * 11, _times_of(all_, column))
        for name, recent, all_ in rows
    ]
    gap = " " * max(0, 4 * column - 25)
    rates = st.line(
        (f" {'rate':<10}", st.NAME), gap, _rates(lately), " " * 11, gap, _rates(whole)
    )  # fmt: skip
    return [top, *lines, rates]


def _times_of(statistics: Statistics, column: int) -> str:
    values = (statistics.mean, statistics.median, statistics.p90, statistics.p99)
    return "".join(f"{st.milliseconds(value):>{column}}" for value in values)


def _rates(figures: Figures) -> str:
    return f"{st.number(figures.requests_per_s):>5} req/s {st.number(figures.tokens_per_s):>5} token/s"


def requests(state: ScreenState, width: int, glyphs: Glyphs) -> Lines:
    """How many requests are where, where they were sent and why, and whether the tokens are right."""
    tally, dot = state.tally, glyphs.dot
    counts = st.line(
        (" requests  ", st.NAME),
        f"{tally.submitted} submitted {dot} {tally.in_flight} in flight {dot} ",
        (f"{tally.completed} done", st.GOOD if tally.completed else ""),
        f" {dot} ",
        (f"{tally.failed} failed", st.BAD if tally.failed else ""),
    )
    wrong, differing = tally.verified["mismatch"], tally.verified["differs"]
    right = tally.verified.total() - wrong - differing
    verified = st.line(
        (f"verified {right} {glyphs.done}", st.GOOD if right else st.LABEL),
        (f" {differing} differ" if differing else "", st.WARN),
        " ",
        (f"{wrong} {glyphs.wrong}", st.BAD if wrong else st.LABEL),
    )
    share = tally.offloaded / tally.routed if tally.routed else 0.0
    threshold = "" if tally.threshold_tokens is None else f" > {tally.threshold_tokens} tokens"
    routing = st.line(
        (" routing   ", st.NAME), f"{tally.policy or '-'}{threshold} {dot} offloaded ",
        (f"{tally.offloaded} of {tally.routed} ({share:.0%}) ", st.OFFLOADED),
    )  # fmt: skip
    room = min(30, width - routing.cell_len - 1)
    if room >= 6:
        routing.append_text(st.meter(share, room, st.OFFLOADED, glyphs))
    rule = st.title("requests", "", width, glyphs)
    return [rule, _both_ends(counts, verified, width), routing]


# -- hand-over, recent requests, log -----------------------------------------------------------


def legs(state: ScreenState, width: int, glyphs: Glyphs) -> Lines:
    """Where the TTFT went, on the mean of completed requests: offloaded and local."""
    names = [leg.removesuffix("_ms").replace("first_", "1st ") for leg in LEGS]
    column = min(12, (width - 11) // len(LEGS))
    heads = "".join(f"{name:>{column}}" for name in names)
    lines = [st.title("mean TTFT by leg", "", width, glyphs), st.line((f" {'':<10}{heads}", st.LABEL))]
    for offloaded, name, colour in ((True, "offloaded", st.OFFLOADED), (False, "local", st.LOCAL)):
        count, sums = state.legs_of[offloaded], state.legs_ms[offloaded]
        values = [sums[leg] / count if count else None for leg in LEGS]
        cells = "".join(f"{st.milliseconds(value):>{column}}" for value in values)
        lines.append(st.line((f" {name:<10}", colour), cells))
    return lines


def recent(state: ScreenState, width: int, rows: int, glyphs: Glyphs) -> Lines:
    """The latest requests, the newest first."""
    names = max(8, width - 53)
    heads = f"{'prompt':>8} {'output':>9}  {'prefilled at':<14} {'TTFT':>7} {'TPOT':>7}"
    lines = [_request_row(record, names, glyphs) for record in list(state.recent)[::-1][: rows - 1]]
    return [st.title("latest requests", heads, width, glyphs), *lines]


def _request_row(record: RequestRecord, names: int, glyphs: Glyphs) -> Text:
    marks = {
        "completed": (glyphs.done, st.GOOD),
        "failed": (glyphs.wrong, st.BAD),
        "in flight": (glyphs.doing, st.WARN),
    }
    mark, colour = marks[record.outcome]
    if record.verified == "mismatch":
        mark, colour = glyphs.wrong, st.BAD
    ttft, tpot = (None if value is None else 1e3 * value for value in (record.ttft_s, record.tpot_s))
    return st.line(
        (f" {mark} ", colour), f"{st.cut(record.id, names):<{names}}",
        f"{record.prompt_tokens:>8} {record.emitted_tokens:>4}/{record.output_tokens:<4}  ",
        (f"{st.cut(record.prefill or '-', 14):<14}", st.OFFLOADED if record.offloaded else st.LOCAL),
        f" {st.milliseconds(ttft):>7} {st.milliseconds(tpot):>7}",
    )  # fmt: skip


def log(state: ScreenState, width: int, rows: int, glyphs: Glyphs) -> Lines:
    """The last lines of the log, the newest at the bottom."""
    lines = list(state.log.lines)[-(rows - 1) :] if rows > 1 else []
    return [st.title("log", "", width, glyphs), *_log_lines(lines)][: max(0, rows)]


def _log_lines(lines: Iterable[LogLine]) -> Lines:
    return [
        st.line(
            (f" {st.clock(entry.at_s):>6}  ", st.LABEL),
            (_marked(entry), st.LEVELS[entry.level]),
            (f"  x{entry.count}" if entry.count > 1 else "", st.LABEL),
        )
        for entry in lines
    ]


def _marked(entry: LogLine) -> str:
    return entry.text if entry.level == "info" else f"{entry.level}: {entry.text}"
