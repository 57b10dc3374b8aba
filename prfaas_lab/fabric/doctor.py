"""What this machine can do for the emulation, what will be used, and what would make it better."""

from __future__ import annotations

import os
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prfaas_lab.fabric import sysctl, userns
from prfaas_lab.fabric.probe import Probe, choose_shaper, probe
from prfaas_lab.units import format_duration, format_size

Verdict = Literal["ok", "warning", "missing"]
ANOTHER_KERNEL = "use a kernel that has it: `vagrant up`, or scripts/vm-test for the tests"
TIMER_SAMPLES = 200
_SHAPES = {
    "netem": "kernel emulation: everything a link can be given",
    "tun": "emulation in user space under real kernel TCP: rate, delay, jitter, loss; no reorder, "
    "duplicate or corrupt",
    "relay": "a relay between loopback addresses: rate, delay and jitter of streams; no loss, and TCP "
    "does not see the path",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing about the machine."""

    name: str
    value: str
    verdict: Verdict
    remedy: str = ""
    """What to do about it; empty when nothing needs to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything found, and what follows."""

    findings: tuple[Finding, ...]
    shaper: str
    reason: str
    """Why not a better one."""
    means: str
    """What this shaper can and cannot do."""


def examine() -> Report:
    """Look at everything; takes about a second and leaves nothing behind."""
    found = probe()
    shaper, reason = choose_shaper(found)
    findings = (
        Finding(name="kernel", value=f"{os.uname().sysname} {os.uname().release}", verdict="ok"),
        _privileges(found),
        _feature("namespaces", found.netns or found.veth or found.bridge, "run as root"),
        _feature("netem", found.netem, ANOTHER_KERNEL),
        _feature("TUN", found.tun, "`modprobe tun`, or as root `chmod 666 /dev/net/tun`"),
        _feature("egress caps", found.egress, ANOTHER_KERNEL),
        _congestion_control(),
        _buffers(),
        _open_files(),
        _cores(),
        _clock(),
    )
    return Report(findings=findings, shaper=shaper, reason=reason, means=_SHAPES[shaper])


def _privileges(found: Probe) -> Finding:
    if found.root:
        inside = " of a user namespace" if userns.MARK in os.environ else ""
        return Finding(name="privileges", value=f"root{inside}", verdict="ok")
    trouble = userns.trouble()
    if not trouble:
        return Finding(name="privileges", value="none, but user namespaces are allowed", verdict="ok")
    return Finding(
        name="privileges",
        value=f"none, and {trouble}",
        verdict="warning",
        remedy="run as root, or as root `sysctl kernel.unprivileged_userns_clone=1 "
        "kernel.apparmor_restrict_unprivileged_userns=0` (those that your kernel has)",
    )


def _feature(name: str, trouble: str, remedy: str) -> Finding:
    if not trouble:
        return Finding(name=name, value="yes", verdict="ok")
    return Finding(name=name, value=f"no: {trouble}", verdict="missing", remedy=remedy)


def _congestion_control() -> Finding:
    chosen = sysctl.congestion_control()
    if chosen == "bbr":
        return Finding(name="congestion control", value=chosen, verdict="ok")
    return Finding(
        name="congestion control",
        value=chosen,
        verdict="warning",
        remedy="`modprobe tcp_bbr`: BBR keeps a long lossy link full where others back off",
    )


def _buffers() -> Finding:
    pages = int(Path("/proc/sys/net/ipv4/tcp_mem").read_text().split()[2])
    memory_bytes = pages * os.sysconf("SC_PAGE_SIZE")
    enough = memory_bytes >= 256 * 2**20
    return Finding(
        name="buffers",
        value=f"{format_size(memory_bytes)} for all TCP sockets; each run sizes its own by the links",
        verdict="ok" if enough else "warning",
        remedy="" if enough else "raise net.ipv4.tcp_mem, else fast and long links cannot be filled",
    )


def _open_files() -> Finding:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    enough = limit >= 1024
    return Finding(
        name="open files",
        value=str(limit),
        verdict="ok" if enough else "warning",
        remedy="" if enough else "`ulimit -n 4096`: every engine takes about ten",
    )


def _cores() -> Finding:
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    value = f"{cores}, load {load:.1f}"
    if cores < 2:
        return Finding(name="cores", value=value, verdict="warning", remedy="two at least, four are better")
    if load > cores:
        remedy = "end other work: engines and measurements wait for their turn"
        return Finding(name="cores", value=value, verdict="warning", remedy=remedy)
    return Finding(name="cores", value=value, verdict="ok")


def _clock() -> Finding:
    source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    name = source.read_text().strip() if source.exists() else "unknown"
    late_s = timer_lag_s()
    return Finding(
        name="clock",
        value=f"{name}; timers late by {format_duration(late_s)} (p99)",
        verdict="ok" if late_s < 0.002 else "warning",
        remedy="" if late_s < 0.002 else "end other work, or give the machine more cores",
    )


def timer_lag_s() -> float:
    """How much later than asked a sleep of 1 ms ends, at the 99th percentile."""
    late = []
    for _ in range(TIMER_SAMPLES):
        begin = time.monotonic()
        time.sleep(0.001)
        late.append(time.monotonic() - begin - 0.001)
    return statistics.quantiles(late, n=100)[98]
