"""What a client is told when something is wrong, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError


class ApiError(Exception):
    """An answer other than the one asked for, with its HTTP status."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})
        super().__init__(message)

    @property
    def body(self) -> dict[str, Any]:
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def refused(error: ValidationError) -> ApiError:
    """A body that is not what it should be: its first mistake."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(map(str, first["loc"])) or None
    more = error.error_count() - 1
    message = first["msg"].removeprefix("Value error, ") + (f" (and {more} more mistakes)" if more else "")
    return ApiError(400, f"{param}: {message}" if param else message, param=param)
