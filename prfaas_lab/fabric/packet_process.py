"""Starting, asking and ending a process of our own that carries packets."""

from __future__ import annotations

import json
import mmap
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.packet_child import COUNTER_FIELDS, MAX_DIRECTIONS, MESSAGE_BYTES

ANSWER_TIMEOUT_S = 5.0
START_TIMEOUT_S = 30.0
"""Python starts in 0.1 s, but not on an emulated CPU beside a dozen engines."""
_PACKAGE_PARENT = str(Path(__file__).parents[2])


class PacketProcess:
    """The process and the memory it publishes counters in. Safe to use from several threads."""

    def __init__(self, name: str, seed: int) -> None:
        """`name`: what it does; `prfaas_lab.fabric.<name>_process` is what runs."""
        self._name = name
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("prfaas-lab-counters")
        os.ftruncate(memory, MAX_DIRECTIONS * COUNTER_FIELDS * 8)
        self._control, self._asking = ours, threading.Lock()
        self._map = mmap.mmap(memory, 0, prot=mmap.PROT_READ)
        self._counters = memoryview(self._map).cast("Q")
        try:
            self._process = _start(name, theirs.fileno(), memory, seed)
        finally:
            theirs.close()
            os.close(memory)
        self.ask({"do": "greet"}, timeout_s=START_TIMEOUT_S)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(
        self, request: dict[str, Any], devices: tuple[int, ...] = (), *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> float:
        """The monotonic time at which the process had done what the request says.

        Raises FabricError when it could not, or is no more.
        """
        with self._asking:
            try:
                self._control.settimeout(timeout_s)
                socket.send_fds(self._control, [json.dumps(request).encode()], devices)
                answer = self._control.recv(MESSAGE_BYTES)
            except OSError as error:
                self._control.close()  # a late answer must not be taken for the next one's
                raise self._failure(f"does not answer ({error})") from error
        if not answer:
            raise self._failure("has ended")
        reply = json.loads(answer)
        if "error" in reply:
            raise FabricError(reply["error"], where=f"{self._name} process")
        return float(reply["at"])

    def counters(self, slot: int) -> tuple[int, ...]:
        """(bytes, packets, dropped, backlog bytes) that the process published last for a slot.

        Raises FabricError when the process is no more: then nothing passes, and no count says so.
        """
        if self._process.poll() is not None:
            raise self._failure("has ended")
        first = slot * COUNTER_FIELDS
        return tuple(self._counters[first : first + COUNTER_FIELDS])

    def close(self) -> None:
        """End the process; its devices and sockets vanish with it."""
        self._control.close()
        try:
            self._process.wait(ANSWER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._counters.release()
        self._map.close()

    def _failure(self, what: str) -> FabricError:
        status = self._process.poll()
        words = ""
        if status is not None and self._process.stderr is not None:
            words = self._process.stderr.read().decode(errors="replace").strip()[-400:]
        ending = "" if status is None else f"; exit status {status}: {words or 'no last words'}"
        return FabricError(
            f"pid {self.pid} {what}{ending}",
            where=f"{self._name} process",
            remedy="see whether it was killed (dmesg), then start the run again",
        )


def _start(name: str, control: int, memory: int, seed: int) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, (_PACKAGE_PARENT, os.environ.get("PYTHONPATH"))))
    arguments = [str(n) for n in (control, memory, os.getpid(), seed)]
    return subprocess.Popen(
        [sys.executable, "-m", f"prfaas_lab.fabric.{name}_process", *arguments],
        pass_fds=(control, memory),
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # ends when we close it, not at the terminal's Ctrl-C
    )
