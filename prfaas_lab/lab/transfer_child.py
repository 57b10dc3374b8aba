"""A process inside a namespace that takes orders as lines of JSON, and how the bench talks to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from typing import IO, Any

from prfaas_lab.errors import LabError

_LINE_BYTES = 2**24
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0


class Child:
    """One end of a transfer, in its own process and namespace."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self._name, self._process, self._errors = name, process, errors

    async def tell(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()

    async def answer(self, timeout_s: float) -> dict[str, Any]:
        """Its next answer; other lines are skipped. Raises LabError with its last words."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                while line := await self._process.stdout.readline():
                    if line.startswith(b"{"):
                        answer: dict[str, Any] = json.loads(line)
                        return answer
        except TimeoutError:
            raise LabError(f"{self._name} did not answer within {timeout_s:g} s") from None
        raise LabError(f"{self._name} ended early: {self._last_words()}")

    async def stop(self) -> None:
        """It ends when its input does; if not, it is killed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no word of why"


def inside(netns: str, *command: str) -> tuple[str, ...]:
    """The command line that runs a command in a network namespace."""
    return ("nsenter", f"--net=/run/netns/{netns}", *command)


@contextlib.asynccontextmanager
async def child(name: str, netns: str, *command: str) -> AsyncIterator[tuple[Child, dict[str, Any]]]:
    """A child and its first answer; it is gone at exit."""
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *inside(netns, *command), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=errors, limit=_LINE_BYTES,
        )  # fmt: skip
        made = Child(name, process, errors)
        try:
            yield made, await made.answer(_START_TIMEOUT_S)
        finally:
            await made.stop()
