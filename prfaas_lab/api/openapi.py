"""`/openapi.json`: what the endpoint takes, from the models that check it."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from prfaas_lab import __version__
from prfaas_lab.api.asked import ChatRequest, CompletionRequest
from prfaas_lab.lab.interfere import LinkChange, PolicyChange

Json = dict[str, Any]
_REF = "#/components/schemas/{model}"
_MODELS = (CompletionRequest, ChatRequest, LinkChange, PolicyChange)
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def description(model: str) -> Json:
    """OpenAPI 3.1 of an endpoint that serves this model."""
    _, schemas = models_json_schema([(m, "validation") for m in _MODELS], ref_template=_REF)
    for name in ("CompletionRequest", "ChatRequest"):
        schemas["$defs"][name]["properties"]["model"] = {"enum": [model, None]}
    link = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "prfaas-lab", "version": __version__},
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "paths": {
            "/health": {"get": _get("Whether requests can be served", {"503": "Not now"})},
            "/metrics": {"get": _get("Metrics for Prometheus", media="text/plain")},
            "/openapi.json": {"get": _get("This description")},
            "/v1/models": {"get": _get("The model")},
            "/v1/completions": {"post": _post("Complete a prompt", "CompletionRequest", stream=True)},
            "/v1/chat/completions": {"post": _post("Go on with a chat", "ChatRequest", stream=True)},
            "/lab/state": {"get": _get("The deployment now")},
            "/lab/policy": {"post": _post("Change where prefill runs", "PolicyChange")},
            "/lab/links/{name}": {
                "parameters": [link],
                "post": _post("Change a link", "LinkChange"),
            },
        },
    }


def _get(summary: str, others: dict[str, str] | None = None, media: str = "application/json") -> Json:
    return {"summary": summary, "responses": {"200": _content("Good", media), **_errors(others or {})}}


def _post(summary: str, model: str, *, stream: bool = False) -> Json:
    good = _content("Good", "application/json")
    if stream:
        good["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    body = {"application/json": {"schema": {"$ref": _REF.format(model=model)}}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": body},
        "responses": {"200": good, **_errors(_REFUSALS)},
    }


_REFUSALS = {
    "400": "Not what can be asked",
    "404": "No such model or link",
    "413": "The body is too large",
    "415": "The body is not JSON",
    "429": "Too many requests at once",
    "503": "An engine failed, or the server is shutting down",
}


def _errors(words: dict[str, str]) -> Json:
    words = {"401": "No valid API key", "403": "Not from here", **words}
    error = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    return {status: {"description": text, "content": error} for status, text in words.items()}


def _content(text: str, media: str) -> Json:
    return {"description": text, "content": {media: {"schema": {}}}}
