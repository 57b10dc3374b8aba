"""A profile of the real model from an emulated run: what its engines took, less what they waited for cores.

`calibrate` without a run measures the model alone in a warm loop. Engines take longer: they start cold,
export, send and receive, and share the machine's cores. The last depends on the load: it is taken out here
and put back by a simulation (`engine.cores`), so that the profile is of a machine, and not of a scenario.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from prfaas_lab.errors import LabError
from prfaas_lab.lab.orders import HANDOVER_BYTES
from prfaas_lab.lab.run_sharing import Sharing
from prfaas_lab.model.profile import CacheCurve, Decode, Machine, PrefillCurve, Profile, StepCurve, rising
from prfaas_lab.spec.load import load_scenario

_KNOTS = 4
_LEAST_REQUESTS = 10
_ROUNDS = 8
"""In which a curve and the errors that are shares of it settle."""
_MOST = 10.0
"""Times a curve that a prefill takes, at most: what a first round that failed cannot spoil."""

_OTHERS_CORES = 0.2
"""Measured in bursty: 0.8 s of the shaper and 1.5 s of the controller, in 10 s in which engines computed."""

Row = dict[str, Any]


def cores_for_engines() -> float:
    """Of this machine: what the controller and the shaper leave while they serve requests."""
    return max(0.5, len(os.sched_getaffinity(0)) - _OTHERS_CORES)


def profile_of_run(folder: Path, cores: float) -> Profile:
    """The profile of a run's engines on a machine of so many cores, from its `requests.jsonl`: over all
    prompts of a length that were computed whole, and over all decode steps of a batch size, what each would
    have taken had the others not computed; and what a request takes beside them.

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
    sharing, restore_s = Sharing(rows, cores), _restore_s(rows)
    name, source = scenario.model.name or str(scenario.model.path), f"measured in {folder}"
    return Profile(
        hardware=name,
        model=name,
        gpus=1,
        prefill=PrefillCurve(source=source, knots=_prefill_knots(whole, sharing)),
        kvcache=CacheCurve(source=source, knots=_cache_knots(whole)),
        decode=Decode(
            bs_max=scenario.engine.max_batch,
            step=StepCurve(
                source=source, knots=_step_knots(decoded, sharing, restore_s, scenario.engine.max_batch)
            ),
        ),
        machine=Machine(source=source, cores=cores, order=_order_s(rows), restore=restore_s),
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


def _order_s(rows: Sequence[Row]) -> float:
    """The mean way of a request to a prefill engine that had nothing else to do, and knew the way."""
    met: set[tuple[str, str]] = set()
    seconds = []
    for row in sorted(rows, key=itemgetter("submitted_s")):
        pair, since = (row["prefill"], row["decode"]), row["submitted_s"]
        others = (other for other in rows if other["prefill"] == row["prefill"] and other is not row)
        if pair in met and not any(
            other["prefill_started_s"] < row["prefill_started_s"] and other["prefill_finished_s"] > since
            for other in others
        ):
            seconds.append(row["prefill_started_s"] - since)
        met.add(pair)
    return _mean(seconds)


def _restore_s(rows: Sequence[Row]) -> float:
    """The mean way of a KVCache from its last byte (or from a prefill beside it) to the first token, at a
    decode engine that had nothing else to do."""
    seconds = []
    for row in rows:
        since = row["transfer_finished_s" if row["offloaded"] else "prefill_finished_s"]
        others = (other for other in rows if other["decode"] == row["decode"] and other is not row)
        if not any(
            other["transfer_finished_s"] < row["first_token_s"] and other["last_token_s"] > since
            for other in others
        ):
            seconds.append(row["first_token_s"] - since)
    return _mean(seconds)


def _mean(seconds: Sequence[float]) -> float:
    """0 of none."""
    return max(0.0, float(np.mean(seconds))) if seconds else 0.0


def _prefill_knots(rows: Sequence[Row], sharing: Sharing) -> tuple[tuple[int, float], ...]:
    """The rising piecewise-linear curve whose relative errors are least. Those are shares of the curve: as
    shares of what was measured they would draw it below the mean."""
    tokens = np.array([row["prompt_tokens"] for row in rows], float)
    seconds = np.array(
        [sharing.had_s("prefill", row["prefill_started_s"], row["prefill_finished_s"]) for row in rows]
    )
    knots = np.unique(np.quantile(tokens, np.linspace(0, 1, _KNOTS)).round())
    hats = np.stack([np.interp(tokens, knots, one) for one in np.eye(len(knots))], axis=1)
    about = seconds
    for _ in range(_ROUNDS):
        values = np.linalg.lstsq(hats / about[:, None], seconds / about, rcond=None)[0]
        about = np.maximum(hats @ values, seconds / _MOST)
    return rising(zip(knots.astype(int).tolist(), values.tolist(), strict=True))


def _step_knots(
    rows: Sequence[Row], sharing: Sharing, restore_s: float, max_batch: int
) -> tuple[tuple[int, float], ...]:
    """A line through each request's mean step, without the caches restored meanwhile, and the mean batch that
    it was decoded in."""
    batches = np.array([_mean_batch(row, rows) for row in rows])
    steps = np.array([_mean_step_s(row, rows, sharing, restore_s) for row in rows])
    slope, at_none = np.polyfit(batches, steps, 1) if np.ptp(batches) else (0.0, 0.0)
    if slope <= 0:
        return ((1, float(steps.mean())),)
    alone = max(float(slope), float(at_none + slope))
    return rising([(1, alone), (max(2, max_batch), float(at_none + slope * max(2, max_batch)))])


def _mean_step_s(row: Row, rows: Iterable[Row], sharing: Sharing, restore_s: float) -> float:
    begin, end = row["first_token_s"], row["last_token_s"]
    restored = sum(
        begin < other["first_token_s"] <= end for other in rows if other["decode"] == row["decode"]
    )
    had_s = sharing.had_s("decode", begin, end)
    return float(max(had_s / 2, had_s - restored * restore_s) / (row["emitted_tokens"] - 1))


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
