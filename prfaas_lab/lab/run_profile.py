"""A profile of the real model from an emulated run: what its engines took as they ran together.

`calibrate` without a run measures the model alone on a core. Engines that outnumber the cores take longer,
by as much as the run's load made them wait for each other: that is what this profile holds, so it is of one
scenario on one machine, and another seed of it can be simulated by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from prfaas_lab.errors import LabError
from prfaas_lab.lab.orders import HANDOVER_BYTES
from prfaas_lab.model.profile import CacheCurve, Decode, PrefillCurve, Profile, StepCurve, rising
from prfaas_lab.spec.load import load_scenario

_KNOTS = 5
_LEAST_REQUESTS = 10

Row = dict[str, Any]


def profile_of_run(folder: Path) -> Profile:
    """The profile of a run's engines, from its `requests.jsonl`: means over all prompts of a length that
    were computed whole, and over all decode steps of a batch size.

    Raises LabError when the folder holds no run of a real model, or too few requests.
    """
    scenario = load_scenario(_there(folder / "scenario.yaml")).scenario
    if scenario.engine.executor == "paced":
        raise LabError("its engines were paced by a profile already", where=str(folder))
    rows = list(_completed(_there(folder / "requests.jsonl")))
    whole = [row for row in rows if not row["cached_tokens"]]
    decoded = [row for row in rows if row["last_token_s"] > row["first_token_s"]]
    if min(len(whole), len(decoded)) < _LEAST_REQUESTS:
        raise LabError(
            f"{len(whole)} prompts were computed whole and {len(decoded)} answers had several tokens, and "
            f"{_LEAST_REQUESTS} of each are needed",
            where=str(folder),
            remedy="run it for longer, with --cache off",
        )
    name, source = scenario.model.name or str(scenario.model.path), f"measured in {folder}"
    return Profile(
        hardware=name,
        model=name,
        gpus=1,
        prefill=PrefillCurve(source=source, knots=_prefill_knots(whole)),
        kvcache=CacheCurve(source=source, knots=_cache_knots(whole)),
        decode=Decode(
            bs_max=scenario.engine.max_batch,
            step=StepCurve(source=source, knots=_step_knots(decoded, scenario.engine.max_batch)),
        ),
    )


def _there(path: Path) -> Path:
    if not path.is_file():
        raise LabError(
            "no such file", where=str(path), remedy="name the directory of a run of prfaas-lab scenario"
        )
    return path


def _completed(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for line in lines:
            row: Row = msgspec.json.decode(line)
            if row["outcome"] == "completed":
                yield row


def _prefill_knots(rows: Sequence[Row]) -> tuple[tuple[int, float], ...]:
    """The rising piecewise-linear curve that is nearest to all prefills in relative terms."""
    tokens = np.array([row["prompt_tokens"] for row in rows], float)
    seconds = np.array([row["prefill_finished_s"] - row["prefill_started_s"] for row in rows])
    knots = np.unique(np.quantile(tokens, np.linspace(0, 1, _KNOTS)).round())
    shares = np.stack([np.interp(tokens, knots, one) for one in np.eye(len(knots))], axis=1)
    values = np.linalg.lstsq(shares / seconds[:, None], np.ones(len(rows)), rcond=None)[0]
    return rising(zip(knots.astype(int).tolist(), values.tolist(), strict=True))


def _step_knots(rows: Sequence[Row], max_batch: int) -> tuple[tuple[int, float], ...]:
    """A line through each request's mean step and the mean batch that it was decoded in."""
    batches = np.array([_mean_batch(row, rows) for row in rows])
    steps = np.array([row["tpot_ms"] / 1e3 for row in rows])
    slope, at_none = np.polyfit(batches, steps, 1) if np.ptp(batches) else (0.0, 0.0)
    if slope <= 0:
        return ((1, float(steps.mean())),)
    alone = max(float(slope), float(at_none + slope))
    return rising([(1, alone), (max(2, max_batch), float(at_none + slope * max(2, max_batch)))])


def _mean_batch(row: Row, rows: Iterable[Row]) -> float:
    """Sequences of its engine that were decoding, itself included, on average over its own time."""
    begin, end = row["first_token_s"], row["last_token_s"]
    shared = sum(
        max(0.0, min(end, other["last_token_s"]) - max(begin, other["first_token_s"]))
        for other in rows
        if other["decode"] == row["decode"]
    )
    return float(shared / (end - begin))


def _cache_knots(rows: Sequence[Row]) -> tuple[tuple[int, int], ...]:
    """KVCache is a line: its ends say all."""
    sizes = {row["prompt_tokens"]: row["received_bytes"] - HANDOVER_BYTES for row in rows}
    shortest, longest = min(sizes), max(sizes)
    return tuple((tokens, sizes[tokens]) for tokens in sorted({shortest, longest}))
