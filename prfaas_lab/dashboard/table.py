"""The summary as a person reads it at the end of a run, on a terminal or in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from prfaas_lab.dashboard import style as st
from prfaas_lab.metrics.handover import LEGS

PIPED_WIDTH = 100
_COMPARED = {
    "tokens": "outputs compared with one-process generation",
    "payload": "payloads compared with what was sent, and their bytes with the layout",
}
_VERDICTS = {"VALID": st.GOOD, "SUSPECT": st.WARN, "INVALID": st.BAD}

Summary = Mapping[str, Any]


def print_summary(summary: Summary, files: str | None = None, console: Console | None = None) -> None:
    """Print the summary table: as wide as the terminal, or PIPED_WIDTH columns when piped."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=PIPED_WIDTH, highlight=False)
    console.print(summary_table(summary, files))


def summary_table(summary: Summary, files: str | None = None) -> RenderableType:
    """What `metrics.summary.summarize` gave, for people. `files`: where the run's files lie."""
    parts: list[RenderableType] = [_verdict(summary), _facts(summary, files), _latency(summary)]
    if summary["handover"]["all"]["requests"]:
        parts.append(_legs(summary))
    if summary["links"]:
        parts.append(_links(summary))
    if summary["engines"]:
        parts.append(_engines(summary))
    return Group(*(line for part in parts for line in (part, "")))


def _verdict(summary: Summary) -> Text:
    verdict, reasons = summary["fidelity"]["verdict"], summary["fidelity"]["reasons"]
    text = Text.assemble(
        (verdict, _VERDICTS[verdict]),
        f"  {summary['scenario']} on {summary['topology']}, {summary['mode']}, {summary['shaper']} shaper,"
        f" {summary['model']}, seed {summary['seed']}",
    )
    for reason in reasons:
        text.append(f"\n  - {reason}")
    return text


def _facts(summary: Summary, files: str | None) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style=st.NAME, no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("requests", _requests(summary))
    for failure in summary["failures"]:
        also = " (and the like)" if failure["count"] > 1 else ""
        words = f"{failure['count']} in {failure['stage']}: {failure['reason']}{also}"
        table.add_row("  failed", Text(words, style=st.BAD))
    table.add_row("routing", _routing(summary))
    if summary.get("cache", {}).get("kept"):
        table.add_row("prefix cache", _cache(summary["cache"]))
    if summary.get("transport", {}).get("compression") not in (None, "none"):
        table.add_row("compression", _compression(summary["transport"], summary["verify"]))
    table.add_row("throughput", _throughput(summary))
    if summary.get("time_scale") not in (None, 1.0):
        table.add_row("  in real time", _real_time(summary))
    if summary["mode"] == "emulate":  # only such a run has outputs to compare
        table.add_row("verified", _verified(summary["verify"]))
    if files is not None:
        table.add_row("files", Text(files))
    return table


def _requests(summary: Summary) -> Text:
    lost = f", {summary['in_flight']} lost" if summary["in_flight"] else ""
    return Text.assemble(
        f"{summary['submitted']} submitted, {summary['completed']} completed, ",
        (f"{summary['failed']} failed", st.BAD if summary["failed"] else ""),
        (lost, st.BAD),
        f" in {st.clock(summary['duration'])}",
    )


def _routing(summary: Summary) -> str:
    threshold, share = summary["threshold_tokens"], summary["offload_fraction"]
    limit = "" if threshold is None else f" at {threshold} tokens"
    offloaded = "-" if share is None else f"{share:.1%}"
    moved = st.size(summary["total_kvcache_bytes"])
    return f"{summary['policy']}{limit}, {offloaded} offloaded, {moved} of KVCache moved"


def _cache(cache: Mapping[str, Any]) -> str:
    share = cache["hit_rate_tokens"]
    found = "-" if share is None else f"{share:.1%}"
    moved = f"{cache['copies']} prefixes copied between engines, {cache['answers']} answers handed over"
    return f"{found} of the prompt tokens found, {moved}"


def _compression(transport: Mapping[str, Any], verify: Mapping[str, Any]) -> str:
    ratio, tokens, outputs = (
        transport["compression_ratio"], verify["token_agreement"], verify["output_agreement"]
    )  # fmt: skip
    shrunk = "-" if ratio is None else f"{ratio:.2f} to 1"
    agree = "" if tokens is None else f"; {tokens:.1%} of tokens and {outputs:.1%} of outputs agree"
    return f"{transport['compression']}, {shrunk}: {st.size(transport['wire_bytes'])} on the wire{agree}"


def _throughput(summary: Summary) -> str:
    return (
        f"{st.number(summary['request_throughput'])} requests/s,"
        f" {st.number(summary['output_throughput'])} output tokens/s,"
        f" {st.number(summary['total_token_throughput'])} tokens/s in all"
    )


def _real_time(summary: Summary) -> str:
    """What the figures here are of the deployment that the run stands for."""
    scale, requests, ttft_ms = summary["time_scale"], summary["request_throughput"], summary["mean_ttft_ms"]
    rate = "-" if requests is None else st.number(requests * scale)
    ttft = "-" if ttft_ms is None else st.milliseconds(ttft_ms / scale)
    return f"{rate} requests/s, mean TTFT {ttft}: all times here are {scale:g} of the real ones"


def _verified(verify: Summary) -> Text:
    wrong = verify["mismatched"]
    return Text.assemble(
        f"{verify['compared']} {_COMPARED[verify.get('what') or 'tokens']}, ",
        (f"{wrong} mismatched", st.BAD if wrong else st.GOOD if verify["compared"] else ""),
        f" ({verify['ties']} ties)" if verify["ties"] else "",
        f", {verify['differing']} differ" if verify.get("differing") else "",
    )


def _latency(summary: Summary) -> Table:
    table = _table("latency", "mean", "median", "p90", "p99", "std")
    for name in ("ttft", "tpot", "itl", "e2el"):
        values = (summary[f"{which}_{name}_ms"] for which in ("mean", "median", "p90", "p99", "std"))
        table.add_row(name.upper(), *map(st.milliseconds, values))
    return table


def _legs(summary: Summary) -> Table:
    names = [leg.removesuffix("_ms").replace("first_", "1st ") for leg in LEGS]
    table = _table("TTFT by leg", *names)
    for name, group in summary["handover"].items():
        if group["requests"]:
            for which in ("mean", "p90"):
                legs = (st.milliseconds(group[leg][which]) for leg in LEGS)
                table.add_row(f"{name} ({group['requests']}), {which}", *legs)
    return table


def _links(summary: Summary) -> Table:
    heads = ("spec", "measured", "RTT/spec", "carried", "mean", "use", "drops", "resent")
    table = _table("link", *heads)
    for name, link in summary["links"].items():
        for source, way in link["directions"].items():
            use = way["utilization"]
            table.add_row(
                f"{name} from {source}",
                "unshaped" if way["configured_bps"] is None else st.rate(way["configured_bps"]),
                st.rate(way["measured_bps"]),
                f"{st.milliseconds(way['measured_rtt_ms'])}/{st.milliseconds(way['configured_rtt_ms'])}",
                st.size(way["bytes"]),
                st.rate(way["mean_bps"]),
                "-" if use is None else f"{use:.1%}",
                str(way["dropped"]),
                "-" if way.get("retransmitted") is None else str(way["retransmitted"]),
            )
    return table


def _engines(summary: Summary) -> Table:
    table = _table("engine", "role", "namespace", "tokens", "busy")
    for name, engine in summary["engines"].items():
        busy = engine["busy_fraction"]
        share = "-" if busy is None else f"{busy:.0%}"
        died = f"died ({engine['died']})" if engine["died"] else share
        table.add_row(name, engine["role"] or "-", engine["netns"] or "-", st.number(engine["tokens"]), died)
    return table


def _table(first: str, *heads: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style=st.LABEL, pad_edge=False)
    table.add_column(first, style=st.NAME, header_style=st.TITLE)  # where it is narrow, names give way
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table
