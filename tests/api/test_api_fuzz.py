"""Whatever is sent, the answer is an answer: never a 5xx, and in OpenAI's form when it is a refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api_deployment import Served, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prfaas_lab.api.openapi import description

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
"""Also NaN and infinity, which Python writes though JSON has none, and lone surrogates."""
POSTS = [path for path, item in description("echo")["paths"].items() if "post" in item]


def fields(path: str) -> dict[str, Any]:
    """The published schema of what a path takes."""
    described = description("echo")
    body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = body["$ref"].rpartition("/")[2]
    properties: dict[str, Any] = described["components"]["schemas"][name]["properties"]
    return properties


def likely(path: str) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies with the right keys, and values that are right or wild."""
    right = {
        "prompt": st.text(min_size=1, max_size=9) | st.lists(st.integers(0, 400), max_size=5),
        "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": JSON}), max_size=3),
        "max_tokens": st.integers(1, 4),
        "stream": st.booleans(),
        "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3),
        "temperature": st.floats(0, 2),
        "rate": st.sampled_from(["5Mbit", "0", "1Gbit"]),
        "outage": st.just("1ms"),
        "lasts": st.just("1ms"),
        "name": st.sampled_from(["threshold", "local-only"]),
        "threshold": st.integers(0, 10**6),
    }
    known = {name: right.get(name, JSON) | JSON for name in fields(path)}
    return st.fixed_dictionaries({}, optional=known)


async def answered(served: Served, path: str, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    data = body.encode("utf-8", "surrogatepass")
    async with served.client.post(path.replace("{name}", "wan"), data=data, headers=headers) as response:
        text = await response.text()
        assert response.status < 500, text
        if response.status >= 400:
            assert json.loads(text)["error"]["message"]


@pytest.mark.parametrize("path", POSTS)
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_no_body_gives_a_5xx(path: str, data: st.DataObject) -> None:
    bodies = data.draw(st.lists(JSON | likely(path), min_size=1, max_size=8))
    async with serving(max_prompt_tokens=1000, max_output_tokens=8) as served:
        for body in bodies:
            await answered(served, path, json.dumps(body))
        assert served.idle


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body", ["", "null", "[" * 100_000, '{"prompt":' * 5000, "\x00", '"\\ud800"', "1e999"]
)
async def test_bodies_that_break_parsers_are_refused(path: str, body: str) -> None:
    async with serving() as served:
        await answered(served, path, body)


async def test_the_description_names_every_path_and_resolves() -> None:
    async with serving() as served, served.client.get("/openapi.json") as response:
        described = await response.json()
    paths = {route.path for route in served.endpoint.routes()}
    assert set(described["paths"]) == paths
    schemas = described["components"]["schemas"]
    for reference in json.dumps(described).split('"#/components/schemas/')[1:]:
        assert reference.partition('"')[0] in schemas
