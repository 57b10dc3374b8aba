"""The directory that a run leaves its files in: this run's alone, and no other run's files among them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prfaas_lab.errors import LabError
from prfaas_lab.metrics.files import write_requests, write_summary
from prfaas_lab.metrics.summary import summarize
from prfaas_lab.metrics.tally import Tally
from prfaas_lab.spec.dump import dump
from prfaas_lab.spec.scenario import Resolved

_FILES = ("summary.json", "requests.jsonl", "events.jsonl", "zygote.log")


@contextmanager
def results_in(directory: Path, resolved: Resolved) -> Iterator[None]:
    """Make the directory, and write `scenario.yaml`; what an earlier run of this topology left there goes.

    So a run that fails leaves no older summary behind, and the last words of a process are its own.
    Raises LabError when the directory cannot be written, or a run that still goes on writes there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(directory, error) from error
    try:
        _lock(lock, directory)
        try:
            _sweep(directory, resolved)
            (directory / "scenario.yaml").write_text(dump(resolved), encoding="utf-8")
        except OSError as error:
            raise _unwritable(directory, error) from error
        yield
    finally:
        os.close(lock)


def write_results(
    directory: Path, tally: Tally, *, stopped: str | None = None, fault: str | None = None
) -> dict[str, Any]:
    """Write and return the summary, and write the requests beside it. A `fault` cut the run short: what
    it measured until then is told, but not to be believed."""
    summary = {**summarize(tally), "stopped": stopped, "fault": fault}
    if fault is not None:
        reasons = [f"a fault ended the run: {fault}", *summary["fidelity"]["reasons"]]
        summary["fidelity"] = {"verdict": "INVALID", "reasons": reasons}
    write_requests(directory / "requests.jsonl", tally.requests.values())
    write_summary(directory / "summary.json", summary)
    return summary


def _lock(lock: int, directory: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LabError(
            "another run writes its results here", where=str(directory), remedy="give another --out"
        ) from error


def _sweep(directory: Path, resolved: Resolved) -> None:
    topology = resolved.topology
    engines = (name for site in topology.datacenters for name in topology.engine_names(site))
    logs = (f"{engine}.log" for engine in engines)
    for path in (*map(directory.joinpath, (*_FILES, *logs)), *directory.glob("verifier-*.log")):
        path.unlink(missing_ok=True)


def _unwritable(directory: Path, error: OSError) -> LabError:
    return LabError(
        f"results cannot be written here: {error.strerror}", where=str(directory), remedy="give another --out"
    )
