"""Network namespaces by name: made, entered and removed without leaving the process.

Names are those of `ip netns`: a namespace `n` is pinned at `/run/netns/n`, so `ip netns exec n` works.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from prfaas_lab.errors import FabricError

NETNS_DIRECTORY = Path("/run/netns")
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000
MNT_DETACH = 2

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def create(name: str) -> None:
    """A new namespace with its loopback down, pinned under its name. Raises FabricError."""
    pin = NETNS_DIRECTORY / name
    try:
        _prepare_directory()
        pin.touch(mode=0o444, exist_ok=False)
        in_thread(lambda: _unshare_and_pin(pin))
    except OSError as error:
        raise FabricError(
            f"cannot make a network namespace: {error.strerror}",
            where=name,
            remedy="run as root, or allow user namespaces; `prfaas-lab doctor` says which",
        ) from error


def delete(name: str) -> None:
    """Unpin a namespace; its interfaces go once no process is left inside. Missing is fine."""
    pin = NETNS_DIRECTORY / name
    _libc.umount2(os.fsencode(pin), MNT_DETACH)
    with contextlib.suppress(FileNotFoundError):
        pin.unlink()


def exists(name: str) -> bool:
    return (NETNS_DIRECTORY / name).exists()


def enter(name: str) -> None:
    """Move the calling thread into a namespace, for good.

    For use between fork and exec, or in a short-lived thread (`call_in`): Python 3.11 has no os.setns.
    """
    with open_netns(name) as fd:
        _checked(_libc.setns(fd, CLONE_NEWNET), f"setns {name}")


@contextlib.contextmanager
def open_netns(name: str) -> Iterator[int]:
    """A file descriptor of the namespace, closed at exit."""
    fd = os.open(NETNS_DIRECTORY / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def call_in(name: str, function: Callable[[], T]) -> T:
    """What `function` returns when called inside a namespace (in a thread that ends with it)."""

    def entered() -> T:
        enter(name)
        return function()

    return in_thread(entered)


def socket_in(name: str | None, family: int, kind: int) -> socket.socket:
    """A socket that belongs to a namespace, usable from anywhere; `None` is the caller's own."""
    if name is None:
        return socket.socket(family, kind)
    return call_in(name, lambda: socket.socket(family, kind))


def in_thread(function: Callable[[], T]) -> T:
    """What `function` returns, called in a thread of its own; exceptions come through."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    try:
        thread.join()
    finally:  # a signal that ends the wait ends no thread: what it makes must be there before it is removed
        thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _prepare_directory() -> None:
    # A shared mount, as `ip netns` makes it, so that an unpinning reaches every mount namespace.
    NETNS_DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = os.fsencode(NETNS_DIRECTORY)
    if _libc.mount(b"", path, b"none", MS_SHARED | MS_REC, None) != 0:
        _checked(_libc.mount(path, path, b"none", MS_BIND | MS_REC, None), f"bind {NETNS_DIRECTORY}")
        _checked(_libc.mount(b"", path, b"none", MS_SHARED | MS_REC, None), f"share {NETNS_DIRECTORY}")


def _unshare_and_pin(pin: Path) -> None:
    _checked(_libc.unshare(CLONE_NEWNET), "unshare")
    own = f"/proc/self/task/{threading.get_native_id()}/ns/net".encode()
    _checked(_libc.mount(own, os.fsencode(pin), b"none", MS_BIND, None), f"pin {pin}")


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
