"""A sweep as pictures: each measure against the first key of the grid, a line for each of the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from prfaas_lab.lab.extras import needs
from prfaas_lab.units import parse_duration, parse_frequency, parse_rate, parse_size, parse_tokens

MEASURES = ("p90_ttft_ms", "mean_ttft_ms", "request_throughput", "link_utilization")


def plot(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], folder: Path) -> list[Path]:
    """One SVG for each measure; none when there is nothing to go along. Raises UsageError without
    matplotlib."""
    if not keys or not rows:
        return []
    needs("--plots", "matplotlib")
    from matplotlib.figure import Figure

    along, *others = keys
    texts = list(dict.fromkeys(row[along] for row in rows))
    places = _places(texts)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for measure in MEASURES:
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for name, points in _lines(rows, along, others, measure).items():
            axes.plot(
                [places[text] for text in points], list(points.values()), marker="o", label=name or None
            )
        axes.set_xticks(list(places.values()), texts)
        axes.set_xlabel(along)
        axes.set_ylabel(measure)
        axes.grid(alpha=0.3)
        if others:
            axes.legend()
        path = folder / f"{measure}.svg"
        figure.savefig(path)
        paths.append(path)
    return paths


def _lines(
    rows: Sequence[Mapping[str, Any]], along: str, others: Sequence[str], measure: str
) -> dict[str, dict[str, float]]:
    """Name -> (value of the first key -> mean over seeds)."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row[measure] is not None:
            name = ", ".join(f"{key} {row[key]}" for key in others)
            found[name][row[along]].append(row[measure])
    return {name: {text: fmean(values) for text, values in points.items()} for name, points in found.items()}


def _places(texts: Sequence[str]) -> dict[str, float]:
    """Where each value lies on the axis: its quantity, or its turn when it is none."""
    for parse in (float, parse_tokens, parse_frequency, parse_rate, parse_duration, parse_size):
        try:
            return {text: float(parse(text)) for text in texts}
        except ValueError:
            continue
    return {text: float(number) for number, text in enumerate(texts)}
