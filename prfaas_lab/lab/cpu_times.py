"""How long a process ran, and how long it waited for a CPU, as the kernel's scheduler counts it."""

from __future__ import annotations

from pathlib import Path

_S_PER_NS = 1e-9


def cpu_times(pid: int) -> tuple[float, float] | None:
    """(seconds on a CPU, seconds runnable but waiting for one) of all live threads since they began; None
    when the process is gone or the kernel does not count (CONFIG_SCHED_INFO).

    Source: /proc/PID/task/TID/schedstat (Documentation/scheduler/sched-stats.rst). /proc/PID/schedstat
    is the first thread's alone.
    """
    counted = [times for task in Path(f"/proc/{pid}/task").glob("*") if (times := _of_thread(task))]
    if not counted:
        return None
    return sum(cpu for cpu, _ in counted) * _S_PER_NS, sum(waited for _, waited in counted) * _S_PER_NS


def _of_thread(task: Path) -> tuple[int, int] | None:
    try:
        cpu_ns, waited_ns, _ = map(int, (task / "schedstat").read_text().split())
    except (OSError, ValueError):  # it ended meanwhile, or nothing is counted
        return None
    return cpu_ns, waited_ns
