"""While a command works: what a signal does, and a sign of life on a terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def working(on: str) -> Iterator[None]:
    """Says on a terminal what goes on. Any signal ends it by SystemExit with the signal's status, so that
    what was made is taken down, and nothing interrupts that."""
    from rich.console import Console

    before = {number: signal.signal(number, _end) for number in _SIGNALS}
    try:
        with Console(stderr=True).status(on):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)
