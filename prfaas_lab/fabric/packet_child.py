"""What every process that carries packets does: it listens to its parent, publishes counters, wakes on time.

Standard library only, so that such a process starts at once and stays small.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from prfaas_lab.fabric.link_queue import LinkQueue

COUNTER_FIELDS = 4
MAX_DIRECTIONS = 512
MESSAGE_BYTES = 65536
MOST_DESCRIPTORS = 4
_PR_SET_TIMERSLACK = 29


class Parent:
    """The process that started us: its requests (JSON, one per datagram; descriptors beside them),
    and whether it still lives. argv: the control socket, the counters' file, its pid, the seed."""

    def __init__(self) -> None:
        control, counters, pid, self.seed = map(int, sys.argv[1:5])
        self._control = socket.socket(fileno=control)
        self._life = os.pidfd_open(pid)
        self.gone = os.getppid() != pid
        self.counters = memoryview(mmap.mmap(counters, 0)).cast("Q")
        self.descriptors = [control, self._life]
        """To be watched for reading; then call `heed`."""

    def heed(self, readable: list[int], serve: Callable[[dict[str, Any], list[int]], None]) -> None:
        """Answer a request, if one has come; set `gone` when there will be no more."""
        if self._life in readable:
            self.gone = True
        elif self._control.fileno() in readable:
            message, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, MOST_DESCRIPTORS)
            if message:
                self._answer(json.loads(message), descriptors, serve)
            else:
                self.gone = True

    def _answer(
        self, request: dict[str, Any], descriptors: list[int],
        serve: Callable[[dict[str, Any], list[int]], None],
    ) -> None:  # fmt: skip
        reply: dict[str, Any]
        try:
            serve(request, descriptors)
            reply = {"at": time.monotonic()}
        except OSError as error:
            reply = {"error": str(error)}
        with contextlib.suppress(BrokenPipeError):
            self._control.send(json.dumps(reply).encode())


def publish(counters: memoryview, slot: int, queue: LinkQueue[Any], *, dropped_before: int = 0) -> None:
    """Show a direction's totals to the parent, with what was dropped before it reached the queue."""
    first = slot * COUNTER_FIELDS
    counters[first] = queue.bytes_total
    counters[first + 1] = queue.packets_total
    counters[first + 2] = queue.dropped_total + dropped_before
    counters[first + 3] = queue.backlog_bytes


def be_prompt() -> None:
    """Wake on time: exact timers, ahead of busy engines where that is allowed.

    Real-time priority keeps wake-ups within 0.5 ms beside any load (4-6 ms otherwise), but a lone
    CPU would be left to nobody else when packets are many.
    """
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        if len(os.sched_getaffinity(0)) > 1:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def allow_descriptors() -> int:
    """Allow ourselves all the descriptors we may have; how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
