"""The controller's hold on its processes: the zygote, and through it every engine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter

from prfaas_lab.errors import EngineError
from prfaas_lab.lab.orders import (
    Answer,
    EngineOrder,
    Exited,
    Forked,
    LoadModel,
    ModelReady,
    Refused,
    VerifierOrder,
)

OnExit = Callable[[str, str], None]

_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)
_MESSAGE_BYTES = 1 << 16
_END_DEADLINE_S = 5.0
_LAST_WORDS_LINES = 8


class Processes:
    """Starts the zygote at once (it loads the model while the network comes up), then forks from it.

    `watch` must run, in a task group, for anything to happen; it returns when the zygote is gone.
    `close` ends them all.
    """

    def __init__(self, load: LoadModel, log: Path) -> None:
        self._log = log
        self._on_exit: OnExit = lambda name, status: None
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log.open("ab") as output:
            self._zygote = subprocess.Popen(
                [sys.executable, "-m", "prfaas_lab.lab.zygote", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal is for the controller alone
                env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
        self._control.send(load.model_dump_json().encode())
        self._control.setblocking(False)
        self._ready: asyncio.Future[ModelReady] | None = None
        self._forks: dict[str, asyncio.Future[int]] = {}
        self._pids: dict[str, int] = {}
        self._childless = asyncio.Event()
        self._childless.set()
        self._closing = False
        self._loading = True

    @property
    def pid(self) -> int:
        return self._zygote.pid

    @property
    def pids(self) -> dict[str, int]:
        """Name -> pid of every child that lives."""
        return dict(self._pids)

    async def watch(self, on_exit: OnExit) -> None:
        """Take in the zygote's messages until it is gone. `on_exit(name, status)` is told of every
        child that ends without having been asked to."""
        self._on_exit = on_exit
        loop = asyncio.get_running_loop()
        while message := await loop.sock_recv(self._control, _MESSAGE_BYTES):
            self._take(_ANSWER.validate_json(message))
        self._fail_waiting("the zygote ended")
        for name in list(self._pids):
            self._gone(name, "ended with the zygote")

    async def ready(self, timeout_s: float) -> ModelReady:
        """Wait for the model. Raises EngineError with the zygote's last words."""
        self._ready = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ready
        except TimeoutError:
            raise EngineError(
                f"the model was not loaded within {timeout_s:.0f} s",
                where=str(self._log),
                remedy="raise engine.ready_timeout, or choose a smaller model",
            ) from None

    async def fork(self, order: EngineOrder | VerifierOrder, timeout_s: float) -> int:
        """Start a child and wait until its control socket answers; its pid."""
        loop = asyncio.get_running_loop()
        self._forks[order.name] = loop.create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await loop.sock_sendall(self._control, order.model_dump_json().encode())
                pid = await self._forks[order.name]
                while not Path(order.control_socket).exists():  # noqa: ASYNC240 - another process makes it
                    if order.name not in self._pids:
                        raise EngineError(
                            "died while starting", where=f"{order.name}: {last_words(order.log)}"
                        )
                    await asyncio.sleep(0.02)
                return pid
        except TimeoutError:
            raise EngineError(
                f"was not ready within {timeout_s:.0f} s: {last_words(order.log)}",
                where=order.name,
                remedy=f"see {order.log}",
            ) from None
        except BrokenPipeError:
            raise EngineError(
                f"cannot start {order.name}: the zygote ended",
                where="zygote",
                remedy=last_words(str(self._log)),
            ) from None
        finally:
            self._forks.pop(order.name, None)

    async def close(self) -> None:
        """Ask every child to end, then end the zygote; whoever is late is killed."""
        self._closing = True
        for pid in self._pids.values():
            _signal(pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_DEADLINE_S):
                await self._childless.wait()
        self._hang_up()
        await asyncio.to_thread(self._end_zygote)
        self._control.close()

    def kill(self) -> None:
        """End everything at once, without a loop: the last resort when bring-up failed."""
        self._hang_up()
        self._end_zygote()
        self._control.close()

    def _hang_up(self) -> None:
        """Tells the zygote, and `watch`, that this is all: closing alone would not while `watch` reads."""
        with suppress(OSError):  # it has gone already
            self._control.shutdown(socket.SHUT_RDWR)

    def _end_zygote(self) -> None:
        if self._loading:  # it would not hear of it until the model is there, which nobody needs now
            self._zygote.kill()
        try:
            self._zygote.wait(_END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._zygote.kill()  # its children have asked the kernel to die with it
            self._zygote.wait()

    def _take(self, answer: Answer) -> None:
        match answer:
            case ModelReady():
                self._loading = False
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(answer)
            case Refused():
                self._fail_waiting(answer.text)
            case Forked():
                self._pids[answer.name] = answer.pid
                self._childless.clear()
                if answer.name in self._forks:
                    self._forks[answer.name].set_result(answer.pid)
            case Exited():
                self._gone(answer.name, answer.status)

    def _gone(self, name: str, status: str) -> None:
        self._pids.pop(name, None)
        if not self._pids:
            self._childless.set()
        if not self._closing:
            self._on_exit(name, status)

    def _fail_waiting(self, why: str) -> None:
        waiting = [self._ready, *self._forks.values()]
        words = last_words(str(self._log))
        for future in waiting:
            if future is not None and not future.done():
                future.set_exception(EngineError(why, where="zygote", remedy=words))


def last_words(log: str) -> str:
    """The end of a process's log, for the message that says it died."""
    try:
        lines = Path(log).read_text(errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return " | ".join(line.strip() for line in lines[-_LAST_WORDS_LINES:] if line.strip()) or "(empty log)"


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
