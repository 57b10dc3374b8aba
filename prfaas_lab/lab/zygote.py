"""The zygote: one process that imports torch and builds the model once, then forks every engine.

In a paced run there is no model, and torch is never imported.

Run as `python -m prfaas_lab.lab.zygote FD`, FD being one end of a SEQPACKET pair whose other end the
controller holds. It stays single-threaded, so that a fork copies nothing half-done; its children
share the weights copy-on-write. When the controller is gone it ends its children and itself.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, TypeAdapter

from prfaas_lab.errors import LabError
from prfaas_lab.lab.orders import Exited, Forked, LoadModel, ModelReady, Order, PacedModel, Refused

MESSAGE_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1
_ORDER: TypeAdapter[Order] = TypeAdapter(Order)


class Zygote:
    """Loads once, forks on order, reports every child's end."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, str] = {}
        self._wakeup, self._woken = socket.socketpair()
        self._model: Any = None

    def run(self) -> None:
        die_with_parent(os.getppid())
        for ignored in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ignored, signal.SIG_IGN)  # only the controller ends us, by closing the pair
        try:
            self._load(LoadModel.model_validate_json(self._control.recv(MESSAGE_BYTES)))
        except LabError as error:
            self._say(Refused(text=str(error)))
            return
        try:
            self._serve()
        finally:
            self._end_children()

    def _load(self, order: LoadModel) -> None:
        from prfaas_lab.lab import worker  # noqa: F401 - warm for the children

        started = time.monotonic()
        ready = self._nothing(order.paced) if order.paced is not None else self._real_model(order)
        gc.collect()
        gc.freeze()
        self._say(ready.model_copy(update={"load_s": time.monotonic() - started}))

    def _nothing(self, paced: PacedModel) -> ModelReady:
        return ModelReady(
            title=paced.title,
            vocab_size=None,
            parameters=0,
            token_bytes=paced.token_bytes,
            state_bytes=paced.state_bytes,
            load_s=0.0,
        )

    def _real_model(self, order: LoadModel) -> ModelReady:
        from prfaas_lab.engine import torch_executor  # noqa: F401 - warm too
        from prfaas_lab.model.torch_build import build
        from prfaas_lab.model.torch_cache import layout_of

        self._model = build(order.model)
        layout = layout_of(self._model, order.chunk_tokens)
        return ModelReady(
            title=order.model.path or order.model.name or "",
            vocab_size=self._model.config.get_text_config().vocab_size,
            parameters=sum(p.numel() for p in self._model.parameters()),
            token_bytes=layout.token_bytes,
            state_bytes=layout.state_bytes,
            load_s=0.0,
        )

    def _serve(self) -> None:
        for end in (self._wakeup, self._woken):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            readable, _, _ = select.select([self._control, self._woken], [], [])
            if self._woken in readable:
                with suppress(BlockingIOError):
                    self._woken.recv(MESSAGE_BYTES)
                self._reap()
            if self._control in readable:
                message = self._control.recv(MESSAGE_BYTES)
                if not message:
                    return
                self._fork(_ORDER.validate_json(message))

    def _fork(self, order: Order) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._children[pid] = order.name
            self._say(Forked(name=order.name, pid=pid))
            return
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for end in (self._control, self._wakeup, self._woken):
                end.close()
            _become(order, self._model, parent)
            status = 0
        except BaseException:  # the child must never return into the zygote's loop
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            name = self._children.pop(pid)
            self._say(Exited(name=name, pid=pid, status=_in_words(os.waitstatus_to_exitcode(status))))

    def _end_children(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)

    def _say(self, answer: BaseModel) -> None:
        with suppress(BrokenPipeError):  # the controller is gone: the next recv says so
            self._control.send(answer.model_dump_json().encode())


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however the parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _become(order: Order, model: Any, parent: int) -> None:
    from prfaas_lab.fabric.namespaces import enter
    from prfaas_lab.lab import worker

    die_with_parent(parent)
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if order.netns is not None:
        enter(order.netns)
    worker.run(order, model)


def _in_words(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


if __name__ == "__main__":
    Zygote(socket.socket(fileno=int(sys.argv[1]))).run()
