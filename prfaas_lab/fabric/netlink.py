"""pyroute2, spoken in one network namespace and from any thread.

pyroute2's synchronous IPRoute opens a socket for every thread that calls it, in the namespace that
thread is in. So a `Netlink` gives it one thread of its own, which enters the namespace first and makes
every call. pyroute2 loads a lot (0.2 s): it is imported where the first fabric comes up, not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable
from concurrent import futures
from types import TracebackType
from typing import Any, TypeVar

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.namespaces import enter

TIMEOUT_S = 10.0
T = TypeVar("T")


class NetlinkError(FabricError):
    """The kernel refused a request; `code` is its errno (2, ENOENT: it knows no such thing)."""

    def __init__(self, code: int, doing: str) -> None:
        self.code = code
        super().__init__(f"{doing}: {os.strerror(code)}")


class Netlink:
    """A conversation with one namespace's kernel. Safe to share between threads."""

    def __init__(self, netns: str | None = None) -> None:
        self._open_things = contextlib.ExitStack()
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix=f"netlink-{netns}")
        self._ip: Any
        self._reader: Any
        try:
            self._ip, self._reader = self._thread.submit(self._open, netns).result(TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def call(self, ask: Callable[[Any], T], doing: str) -> T:
        """What `ask` returns when called with the namespace's IPRoute, in the thread that owns it.

        Raises NetlinkError with what we were `doing` when the kernel refuses, or does not answer in time.
        """
        return self._in_thread(lambda: ask(self._ip), doing)

    def read(self, question: Any, kind: int, doing: str) -> Any:
        """The one reply to a pyroute2 message, cheaply: without IPRoute's event loop, and decoded only
        where it is looked at (0.2 ms for a qdisc with its statistics). Raises NetlinkError."""
        return self._in_thread(lambda: self._read(question, kind), doing)

    def close(self) -> None:
        """Close what is open and end the thread."""
        closed, _ = futures.wait([self._thread.submit(self._open_things.close)], TIMEOUT_S)
        self._thread.shutdown(wait=bool(closed))

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _in_thread(self, function: Callable[[], T], doing: str) -> T:
        from pyroute2.netlink.exceptions import NetlinkError as Refusal

        try:
            # The deadline is kept out here: what can take long is not the reply but the sending of the
            # request, where a thread waits inside the kernel for its lock.
            return self._thread.submit(function).result(TIMEOUT_S)
        except futures.TimeoutError as error:
            raise NetlinkError(errno.ETIMEDOUT, doing) from error
        except Refusal as error:
            raise NetlinkError(error.code, doing) from error
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO, doing) from error

    def _open(self, netns: str | None) -> tuple[Any, Any]:
        from pyroute2 import IPRoute, IPRSocket

        from prfaas_lab.fabric import tc_options

        tc_options.register()
        if netns is not None:
            enter(netns)
        # A plain loop, whatever the program's own may be: uvloop cannot carry netlink sockets.
        loop = asyncio.SelectorEventLoop()
        self._open_things.callback(loop.close)
        self._open_things.callback(lambda: loop.run_until_complete(loop.shutdown_asyncgens()))
        ip = self._open_things.enter_context(IPRoute(use_event_loop=loop))
        return ip, self._open_things.enter_context(IPRSocket())

    def _read(self, question: Any, kind: int) -> Any:
        from pyroute2.netlink import NLM_F_ECHO, NLM_F_REQUEST

        # Older kernels, such as 6.1, answer a question for one qdisc only where an echo is asked for.
        self._reader.put(question, kind, NLM_F_REQUEST | NLM_F_ECHO)
        (reply,) = self._reader.get()
        if reply["header"]["error"] is not None:
            raise reply["header"]["error"]
        return reply
