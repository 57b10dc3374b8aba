"""A profile of the real model from emulated runs: what its engines took, less what they waited for cores.

`calibrate` without a run measures the model alone in a loop. Engines take longer: they also
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

_OTHERS_CORES = 0.4
"""Measured in bursty while two engines prefill and one decodes: the shaper, whose link is in use then, takes
0.26, the controller and the rest 0.13."""

Row = dict[str, Any]


def cores_for_engines() -> float:
    """Of this machine: what the controller and the shaper leave while they serve requests."""
    return max(0.5, len(os.sched_getaffinity(0)) - _OTHERS_CORES)


def profile_of_runs(folders: Sequence[Path], cores: float) -> Profile:
    """The profile of engines on a machine of so many cores, from the `requests.jsonl` of one run or several:
    over all prompts of a length that were computed whole, and over all decode steps of a batch size, what
    each would have taken had the others not computed; and what a request takes beside them.

    Raises LabError when a folder holds no run of a real model, when they are of several models, or hold too
    few requests.
    """
    runs = [_Run(folder, cores) for folder in folders]
    model, max_batch = runs[0].model, runs[0].max_batch
    for run in runs:
        if (run.model, run.max_batch) != (model, max_batch):
            raise LabError(
                f"ran {run.model} in batches of {run.max_batch}, and another run {model} of {max_batch}",
                where=str(run.folder),
                remedy="make a profile of each",
            )
    prefills = [prefill for run in runs for prefill in run.prefills()]
    order_s = _mean(seconds for run in runs for seconds in run.orders(first=False))
    first_s = _mean(seconds for run in runs for seconds in run.orders(first=True))
    restore_s = _mean(seconds for run in runs for seconds in run.restoring())
    steps = [step for run in runs for step in run.steps(restore_s)]
    if min(len(prefills), len(steps)) < _LEAST_REQUESTS:
        raise LabError(
            f"{len(prefills)} prompts were computed whole and {len(steps)} answers had several tokens, and "
            f"{_LEAST_REQUESTS} of each are needed",
            where=", ".join(map(str, folders)),
            remedy="run it for longer, with --cache off",
        )
    source = f"measured in {', '.join(map(str, folders))}"
    return Profile(
        hardware=model,
        model=model,
        gpus=1,
        prefill=PrefillCurve(source=source, knots=_prefill_knots(prefills)),
        kvcache=CacheCurve(source=source, knots=_cache_knots(run.sizes() for run in runs)),
        decode=Decode(
            bs_max=max_batch,
            step=StepCurve(source=source, knots=_step_knots(steps, max_batch)),
        ),
        machine=Machine(
            source=source,
            cores=cores,
            order=order_s,
            connect=max(0.0, round(first_s - order_s, 6)),
            restore=restore_s,
        ),
    )


class _Run:
    """What the requests of one run say."""

    def __init__(self, folder: Path, cores: float) -> None:
        scenario = load_scenario(_there(folder / "scenario.yaml")).scenario
        if scenario.engine.executor == "paced":
            raise LabError("its engines were paced by a profile already", where=str(folder))
        self.folder, self.max_batch = folder, scenario.engine.max_batch
        self.model = scenario.model.name or str(scenario.model.path)
        self._rows = list(_completed(_there(folder / "requests.jsonl")))
        self._whole = [row for row in self._rows if not row["cached_tokens"]]
        self._sharing = Sharing(self._rows, cores)

    def prefills(self) -> Iterator[tuple[int, float]]:
        """Tokens of each prompt that was computed whole, and the seconds of a core that it had."""
        for row in self._whole:
            yield (
                row["prompt_tokens"],
                self._sharing.had_s(row["prefill_started_s"], row["prefill_finished_s"]),
            )

    def sizes(self) -> dict[int, int]:
        """Bytes of KVCache, by the tokens of its prompt."""
        return {row["prompt_tokens"]: row["received_bytes"] - HANDOVER_BYTES for row in self._whole}

    def orders(self, *, first: bool) -> Iterator[float]:
        """Ways of requests to a prefill engine that had nothing else to do: of those that knew the way, or
        of the first of a pair in one datacenter, which it connects."""
        met: set[tuple[str, str]] = set()
        for row in sorted(self._rows, key=itemgetter("submitted_s")):
            pair, since = (row["prefill"], row["decode"]), row["submitted_s"]
            wanted = pair not in met and not row["offloaded"] if first else pair in met
            met.add(pair)
            if wanted and not any(
                other["prefill_started_s"] < row["prefill_started_s"] and other["prefill_finished_s"] > since
                for other in self._beside(row, "prefill")
            ):
                yield row["prefill_started_s"] - since

    def restoring(self) -> Iterator[float]:
        """Seconds of a core from a KVCache's last byte (or from a prefill beside it) to the first token, at
        a decode engine that had nothing else to do."""
        for row in self._rows:
            since = row["transfer_finished_s" if row["offloaded"] else "prefill_finished_s"]
            if not any(
                other["transfer_finished_s"] < row["first_token_s"] and other["last_token_s"] > since
                for other in self._beside(row, "decode")
            ):
                yield self._sharing.had_s(since, row["first_token_s"])

    def steps(self, restore_s: float) -> Iterator[tuple[float, float]]:
        """The mean batch that each answer was decoded in, and its mean step without the caches restored
        meanwhile: seconds of a core."""
        for row in self._rows:
            begin, end = row["first_token_s"], row["last_token_s"]
            if end > begin:
                had_s = self._sharing.had_s(begin, end)
                restored = sum(begin < other["first_token_s"] <= end for other in self._beside(row, "decode"))
                batch = 1 + sum(
                    max(0.0, min(end, other["last_token_s"]) - max(begin, other["first_token_s"]))
                    for other in self._beside(row, "decode")
                ) / (end - begin)
                yield batch, max(had_s / 2, had_s - restored * restore_s) / (row["emitted_tokens"] - 1)

    def _beside(self, row: Row, engine: str) -> Iterator[Row]:
        """The other requests of its engine."""
        return (other for other in self._rows if other[engine] == row[engine] and other is not row)


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


def _mean(seconds: Iterable[float]) -> float:
    """To the microsecond; 0 of none."""
    several = list(seconds)
    return max(0.0, round(float(np.mean(several)), 6)) if several else 0.0


def _prefill_knots(prefills: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """The rising piecewise-linear curve whose relative errors are least. Those are shares of the curve: as
    shares of what was measured they would draw it below the mean."""
    tokens, seconds = np.array(prefills, float).T
    knots = np.unique(np.quantile(tokens, np.linspace(0, 1, _KNOTS)).round())
    hats = np.stack([np.interp(tokens, knots, one) for one in np.eye(len(knots))], axis=1)
    about = seconds
    for _ in range(_ROUNDS):
        values = np.linalg.lstsq(hats / about[:, None], seconds / about, rcond=None)[0]
        about = np.maximum(hats @ values, seconds / _MOST)
    return rising(zip(knots.astype(int).tolist(), values.tolist(), strict=True))


def _step_knots(steps: Sequence[tuple[float, float]], max_batch: int) -> tuple[tuple[int, float], ...]:
    """A line through the mean steps of answers, over their mean batches."""
    batches, seconds = np.array(steps).T
    slope, at_none = np.polyfit(batches, seconds, 1) if np.ptp(batches) else (0.0, 0.0)
    if slope <= 0:
        return ((1, float(seconds.mean())),)
    alone = max(float(slope), float(at_none + slope))
    return rising([(1, alone), (max(2, max_batch), float(at_none + slope * max(2, max_batch)))])


def _cache_knots(runs: Iterable[dict[int, int]]) -> tuple[tuple[int, int], ...]:
    """KVCache is a line: its ends say all."""
    sizes = {tokens: size for run in runs for tokens, size in run.items()}
    return tuple((tokens, sizes[tokens]) for tokens in sorted({min(sizes), max(sizes)}))
