"""Namespaces without root: the same command again, as root of a user namespace of its own.

`python -m prfaas_lab.fabric.userns COMMAND...` is the step between: a fresh process with one thread,
as the kernel demands of who makes a user namespace.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

MARK = "PRFAAS_LAB_USERNS"
"""Set in the environment of the second start: `inside`, or why it is not."""
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
TRY_TIMEOUT_S = 20.0
_libc = ctypes.CDLL(None, use_errno=True)


def reexec_in_userns() -> None:
    """Start this command again inside a user namespace; returns where that is needless (root), done
    already, or not possible. Nothing must be open yet that the second start would miss."""
    if os.geteuid() == 0 or MARK in os.environ:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", __name__, *sys.orig_argv])


def trouble() -> str:
    """Why this user cannot have a user namespace; empty when it can."""
    if mark := os.environ.get(MARK):
        return "" if mark == "inside" else mark
    attempt = subprocess.run(
        [sys.executable, "-m", __name__, sys.executable, "-c", f"import os; print(os.environ[{MARK!r}])"],
        capture_output=True,
        text=True,
        timeout=TRY_TIMEOUT_S,
        check=False,
    )
    answer = attempt.stdout.strip() or attempt.stderr.strip()[-200:]
    return "" if answer == "inside" else answer


def main(command: list[str]) -> None:
    """Become root of a user namespace with a /run of its own, and run the command. It stays in the
    machine's network, so that its HTTP doors can be reached; it may make namespaces of its own."""
    try:
        _enter()
        mark = "inside"
    except OSError as error:
        mark = f"no user namespace: {error}"
    os.execve(command[0], command, {**os.environ, MARK: mark})


def _enter() -> None:
    user, group = os.geteuid(), os.getegid()
    _checked(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _checked(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make mounts private")
    _checked(_libc.mount(b"tmpfs", b"/run", b"tmpfs", 0, b"mode=755"), "mount /run")


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main(sys.argv[1:])
