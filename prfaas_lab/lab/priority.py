"""Ahead of the engines: the controller is the client's side and the stopwatch of a run.

On a small machine the engines would otherwise keep it waiting, and its wait would be measured as
theirs. It has little to do at a time, and the kernel keeps 5 % for everybody else in any case.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def ahead_of_engines() -> Iterator[None]:
    """Real-time priority for this thread, and for threads started from it, where that is allowed.

    Open it after the last fork: children would inherit it.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)
