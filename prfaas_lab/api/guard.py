"""What stands before every call: its id, who may call, what body it brings, and how errors look."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from prfaas_lab.api.errors import ApiError
from prfaas_lab.api.settings import EndpointSettings, is_loopback
from prfaas_lab.errors import LabError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_ID = re.compile(r"[\x21-\x7e]{1,128}")


async def echo_request_id(http: web.Request, response: web.StreamResponse) -> None:
    """A signal, since the head of a stream is sent long before its handler returns."""
    given = http.headers.get("X-Request-ID", "")
    response.headers["X-Request-ID"] = given if _ID.fullmatch(given) else secrets.token_hex(16)


def guard(settings: EndpointSettings, note: Callable[[str], None]) -> Middleware:
    """`note` is told of what must not happen."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _check_caller(request, settings)
            _check_body(request)
            return await handler(request)
        except ApiError as error:
            return web.json_response(error.body, status=error.status, headers=error.headers)
        except web.HTTPException as error:
            told = ApiError(error.status, error.text or error.reason)
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            return web.json_response(told.body, status=error.status, headers=allow)
        except LabError as error:
            return web.json_response(ApiError(503, str(error)).body, status=503)
        except ConnectionError:
            raise  # the client left: there is nobody to tell
        except Exception as error:
            note(f"a bug in the endpoint: {error!r} at {request.method} {request.path[:200]}")
            return web.json_response(ApiError(500, "a bug in the server").body, status=500)

    return middleware


def _check_caller(http: web.Request, settings: EndpointSettings) -> None:
    """With a key, whoever has it; without one, anybody may ask, and only this machine may interfere: by its
    own name, since a web page of another may have had that name led here."""
    if not http.path.startswith(("/v1/", "/lab/")):
        return
    if settings.api_key is not None:
        scheme, _, given = http.headers.get("Authorization", "").partition(" ")
        key = settings.api_key.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode("utf-8", "replace"), key
        ):
            header = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, "a valid API key is needed", code="invalid_api_key", headers=header)
    elif http.path.startswith("/lab/") and not (is_loopback(http.remote) and is_loopback(http.url.host)):
        raise ApiError(403, "only this machine may do that, as the server has no API key")


def _check_body(http: web.Request) -> None:
    """JSON, and said so: a web page of another origin cannot send that unasked."""
    if http.method == "POST" and http.content_type != "application/json":
        raise ApiError(415, "the body must be JSON (Content-Type: application/json)")
