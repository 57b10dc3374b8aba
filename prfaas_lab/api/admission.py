"""How many requests may be in the house at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from prfaas_lab.api.errors import ApiError

RETRY_AFTER_S = 1


class Admission:
    """Counts requests in; refuses them beyond a limit, and all once it is closed."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._inside = 0
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def inside(self) -> int:
        return self._inside

    @contextmanager
    def enter(self, requests: int) -> Iterator[None]:
        """For as long as they are served. Raises ApiError: 429 when full, 503 when closed."""
        retry = {"Retry-After": str(RETRY_AFTER_S)}
        if self._closed:
            raise ApiError(503, "the server is shutting down", headers=retry)
        if self._inside + requests > self._max_requests:
            message = (
                f"{self._inside} requests are being served, and {self._max_requests} may be; retry later"
            )
            raise ApiError(429, message, code="rate_limit_exceeded", headers=retry)
        self._inside += requests
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= requests
            if not self._inside:
                self._empty.set()

    async def drain(self) -> None:
        """Let nobody in any more; returns when all who are inside have gone."""
        self._closed = True
        await self._empty.wait()
