"""`/lab/*`: the running deployment looked at, and changed by hand."""

from __future__ import annotations

from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from prfaas_lab.api.errors import ApiError, refused
from prfaas_lab.errors import LabError
from prfaas_lab.lab.deployment import Deployment
from prfaas_lab.lab.interfere import LinkChange, PolicyChange, change_link, change_policy, state
from prfaas_lab.spec.quantities import FROM_FILE

M = TypeVar("M", bound=BaseModel)


class Control:
    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    async def state(self, http: web.Request) -> web.Response:
        return web.json_response(state(self._deployment))

    async def link(self, http: web.Request) -> web.Response:
        change, name = await _body(http, LinkChange), http.match_info["name"]
        if name not in self._deployment.resolved.topology.links:
            known = ", ".join(self._deployment.resolved.topology.links)
            raise ApiError(404, f"there is no link {name!r} (have: {known})", param="name")
        try:
            await change_link(self._deployment, name, change)
        except (LabError, ValueError) as error:
            raise ApiError(400, str(error)) from error
        except TimeoutError as error:
            raise ApiError(503, "the change did not take effect in time") from error
        links = [each for each in state(self._deployment)["links"] if each["link"] == name]
        return web.json_response({"links": links})

    async def policy(self, http: web.Request) -> web.Response:
        change = await _body(http, PolicyChange)
        try:
            change_policy(self._deployment, change)
        except LabError as error:
            raise ApiError(400, str(error), param="name") from error
        now = state(self._deployment)
        return web.json_response({key: now[key] for key in ("policy", "threshold_tokens")})


async def _body(http: web.Request, kind: type[M]) -> M:
    try:
        return kind.model_validate_json(await http.read(), context=FROM_FILE)
    except ValidationError as error:
        raise refused(error) from error
