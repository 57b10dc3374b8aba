"""Where a run stands: its phase, how far it is, and how long it will still take."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prfaas_lab.dashboard.state import ScreenState


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`fraction` and `left_s` are None where nobody can know."""

    phase: str
    fraction: float | None
    elapsed_s: float
    left_s: float | None
    words: str = ""
    whole_s: float | None = None
    """How long the phase lasts, where time and not a count ends it."""


def progress(state: ScreenState) -> Progress:
    match state.phase:
        case "starting":
            return _starting(state)
        case "running":
            return _running(state)
        case "draining":
            words = f"{state.tally.in_flight} in flight"
            return _counted(
                state, state.tally.submitted - state.tally.in_flight, state.tally.submitted, words
            )
        case "verifying":
            return _verifying(state)
        case phase:
            fraction = 1.0 if phase == "done" else None
            return Progress(phase=phase, fraction=fraction, elapsed_s=state.now_s, left_s=None)


def _starting(state: ScreenState) -> Progress:
    shares = [(done or 0) / total if total else 0.0 for _, done, total in state.steps()]
    fraction = sum(shares) / len(shares)
    return Progress(phase="starting", fraction=fraction, elapsed_s=state.now_s, left_s=None)


def _running(state: ScreenState) -> Progress:
    """Arrivals end with the duration or with the last request asked for, whichever is first."""
    run, elapsed_s = state.tally.run, state.now_s - (state.tally.started_s or 0.0)
    if run is None or run.mode == "serve":  # it ends when somebody stops it
        return Progress(phase="running", fraction=None, elapsed_s=elapsed_s, left_s=None)
    by_time = elapsed_s / run.duration_s if run.duration_s > 0 else 0.0
    by_count = state.tally.submitted / run.requests if run.requests else 0.0
    left_s = max(0.0, run.duration_s - elapsed_s)
    if by_count > 0:
        left_s = min(left_s, max(0.0, elapsed_s / by_count - elapsed_s))
    counted = by_count > by_time
    return Progress(
        phase="running",
        fraction=min(1.0, max(by_time, by_count)),
        elapsed_s=elapsed_s,
        left_s=left_s,
        words=f"{state.tally.submitted} of {run.requests} requests" if counted else "",
        whole_s=None if counted else run.duration_s,
    )


def _verifying(state: ScreenState) -> Progress:
    """The rest takes as long per output as those before it."""
    told, since_s = state.phases["verifying"], state.phases_since_s["verifying"]
    done, total = told.done or 0, told.total or 0
    left_s = (told.at_s - since_s) / done * (total - done) if done else None
    return replace(_counted(state, done, total, f"{done} of {total}"), left_s=left_s)


def _counted(state: ScreenState, done: int, total: int, words: str) -> Progress:
    fraction = done / total if total else None
    return Progress(phase=state.phase, fraction=fraction, elapsed_s=state.now_s, left_s=None, words=words)
