"""The endpoint: an HTTP server on a deployment, from the first client to the last."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from prfaas_lab.api.admission import Admission
from prfaas_lab.api.completions import Completions
from prfaas_lab.api.control import Control
from prfaas_lab.api.exporter import Exporter
from prfaas_lab.api.guard import echo_request_id, guard
from prfaas_lab.api.openapi import description
from prfaas_lab.api.settings import EndpointSettings
from prfaas_lab.api.tokenizer import tokenizer_for
from prfaas_lab.errors import LabError
from prfaas_lab.lab.deployment import Deployment
from prfaas_lab.metrics import events as ev

_BACKLOG = 1024
_SHUTDOWN_S = 1.0


@asynccontextmanager
async def open_endpoint(deployment: Deployment, settings: EndpointSettings) -> AsyncIterator[Endpoint]:
    """Serve until the context is left; what is still in flight then is given up.

    Raises LabError when the address cannot be had, or the model's tokenizer cannot be read.
    """
    endpoint = Endpoint(deployment, settings)
    app = web.Application(
        middlewares=[guard(settings, lambda text: endpoint.note("error", text))],
        client_max_size=settings.max_body_bytes,
    )
    app.on_response_prepare.append(echo_request_id)
    app.add_routes(endpoint.routes())
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        await _listen(runner, settings)
        endpoint.announce(runner.addresses[0][1])
        yield endpoint
    finally:
        await runner.cleanup()
        endpoint.exporter.close()


def check_address(settings: EndpointSettings) -> None:
    """Asked before a deployment is brought up for it. Raises LabError for an address that is unknown, taken
    or forbidden."""
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as aiohttp's
                tried.bind(address)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise _no_address(settings, error) from error


async def _listen(runner: web.AppRunner, settings: EndpointSettings) -> None:
    try:
        await web.TCPSite(runner, settings.host, settings.port, backlog=_BACKLOG).start()
    except OSError as error:
        raise _no_address(settings, error) from error


def _no_address(settings: EndpointSettings, error: OSError) -> LabError:
    return LabError(
        f"cannot listen: {error.strerror or error}",
        where=f"{settings.host}:{settings.port}",
        remedy="choose another --port (0: any that is free) or --host",
    )


class Endpoint:
    """What answers. `drain` lets those inside finish."""

    def __init__(self, deployment: Deployment, settings: EndpointSettings) -> None:
        self._deployment, self._settings = deployment, settings
        self.model = Path(deployment.model.title).name
        tokenizer, self._tokenizer_words = tokenizer_for(
            deployment.resolved.scenario.model.path, paced=deployment.model.vocab_size is None
        )
        self.admission = Admission(settings.max_requests)
        self.exporter = Exporter(deployment, self.model)
        self._completions = Completions(deployment, tokenizer, self.admission, settings, self.model)
        self._control = Control(deployment)
        self._created = int(time.time())
        self.port = settings.port

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self._health),
            web.get("/metrics", self._metrics),
            web.get("/openapi.json", self._openapi),
            web.get("/v1/models", self._models),
            web.post("/v1/completions", self._completions.complete),
            web.post("/v1/chat/completions", self._completions.chat),
            web.get("/lab/state", self._control.state),
            web.post("/lab/policy", self._control.policy),
            web.post("/lab/links/{name}", self._control.link),
        ]

    async def drain(self) -> None:
        await self.admission.drain()

    def announce(self, port: int) -> None:
        """Say where it is, and what to beware of."""
        self.port = port
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        self.note("info", f"serving {self.model} at http://{host}:{port}/v1, text as {self._tokenizer_words}")
        if not self._settings.loopback and self._settings.api_key is None:
            self.note(
                "warning", "other machines can reach this endpoint, and it asks for no key (--api-key-file)"
            )

    def note(self, level: str, text: str) -> None:
        ledger = self._deployment.ledger
        ledger.record(ev.Noted(at_s=ledger.now(), level=level, text=text))

    async def _health(self, http: web.Request) -> web.Response:
        """Good while there is an engine for either half of a request."""
        alive = {engine.role for engine in self._deployment.engines.values() if engine.alive}
        return web.json_response({"alive": sorted(alive)}, status=200 if len(alive) == 2 else 503)

    async def _metrics(self, http: web.Request) -> web.Response:
        body, content_type = self.exporter.scrape(http.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _openapi(self, http: web.Request) -> web.Response:
        return web.json_response(description(self.model))

    async def _models(self, http: web.Request) -> web.Response:
        model = {
            "id": self.model,
            "object": "model",
            "created": self._created,
            "owned_by": "prfaas-lab",
            "root": self._deployment.model.title,
            "max_model_len": self._settings.max_prompt_tokens + self._settings.max_output_tokens,
        }
        return web.json_response({"object": "list", "data": [model]})
