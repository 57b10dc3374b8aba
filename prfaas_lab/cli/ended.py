"""How a run that ended is judged, emulated or simulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prfaas_lab.errors import RunFailed


def check(summary: Mapping[str, Any], *, remedy: str) -> None:
    """Raises RunFailed unless every request was served, its tokens held, and the network was faithful."""
    faults = []
    if summary["verify"]["mismatched"]:
        faults.append(f"{summary['verify']['mismatched']} outputs differ from one-process generation")
    if summary["failed"]:
        faults.append(f"{summary['failed']} of {summary['submitted']} requests failed")
    if summary["fidelity"]["verdict"] == "INVALID" and not faults:
        faults.append("the run is INVALID: " + "; ".join(summary["fidelity"]["reasons"]))
    if faults:
        raise RunFailed("; ".join(faults), remedy=remedy)
