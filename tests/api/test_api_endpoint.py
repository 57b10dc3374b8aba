"""The endpoint speaks as an OpenAI-compatible server does, within its limits, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from api_deployment import EchoEngines, Served, serving

from prfaas_lab.errors import LabError
from prfaas_lab.metrics import events as ev

HI = [{"role": "user", "content": "Hi"}]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


async def events(served: Served, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of a stream, of which the last must be the end mark."""
    async with served.client.post(path, json={**body, "stream": True}) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        lines = (await response.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - it is met in another's time
        await asyncio.sleep(0.005)


# -- what is asked and answered ----------------------------------------------------------------


async def test_the_model_is_listed() -> None:
    async with serving() as served, served.client.get("/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["echo"]


@pytest.mark.parametrize(
    ("prompt", "texts", "prompt_tokens"),
    [
        ("Hello", 1, 5),
        ([75, 104, 111], 1, 3),
        (["Hello", "you"], 2, 8),
        ([[75, 104], [111]], 2, 3),
    ],
)
async def test_a_prompt_is_text_or_ids_or_several(prompt: Any, texts: int, prompt_tokens: int) -> None:
    async with serving() as served:
        status, answer, headers = await served.ask(COMPLETIONS, {"prompt": prompt, "max_tokens": 4})
        assert status == 200
        assert [choice["index"] for choice in answer["choices"]] == list(range(texts))
        assert all(choice["text"] == "Grü" for choice in answer["choices"])
        assert all(choice["finish_reason"] == "length" for choice in answer["choices"])
        assert answer["usage"]["prompt_tokens"] == prompt_tokens
        assert answer["usage"]["completion_tokens"] == 4 * texts
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert headers["X-Prfaas-Prefill"] == "west-p0"
        assert served.idle


async def test_an_answer_tells_where_prefill_ran_and_how_its_kvcache_came() -> None:
    async with serving() as served:
        _, answer, headers = await served.ask(COMPLETIONS, {"prompt": "long " * 20, "max_tokens": 2})
        told = answer["prfaas"][0]
        assert (told["prefill"], told["offloaded"]) == ("east-p0", True)
        assert sum(told["handover_ms"].values()) == pytest.approx(told["ttft_ms"], abs=0.01)
        assert headers["X-Prfaas-Offloaded"] == "true"


async def test_a_chat_takes_text_and_parts_of_text() -> None:
    async with serving() as served:
        parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]
        for content in ("Hello", parts):
            body = {"messages": [{"role": "user", "content": content}], "max_completion_tokens": 3}
            status, answer, _ = await served.ask(CHAT, body)
            assert status == 200
            assert answer["choices"][0]["message"]["role"] == "assistant"
        one, other = (order.prompt for order in served.engines.orders)
        assert one == other


async def test_a_stream_is_one_token_an_event_then_the_usage_then_the_end() -> None:
    async with serving() as served:
        body = {"prompt": "Hi", "max_tokens": 5, "stream_options": {"include_usage": True}}
        *chunks, last = await events(served, COMPLETIONS, body)
        assert [chunk["choices"][0]["text"] for chunk in chunks] == ["G", "r", "", "ü", "\ufffd"]
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"]
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 5
        assert last["prfaas"][0]["decode"] == "west-d0"


async def test_a_chat_stream_begins_with_text_and_not_with_an_empty_role() -> None:
    async with serving() as served:
        chunks = await events(
            served, CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        )
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert deltas == [{"role": "assistant", "content": "G"}, {"content": "r"}]


async def test_several_prompts_stream_under_their_numbers() -> None:
    async with serving() as served:
        chunks = await events(served, COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 3})
        texts = {0: "", 1: ""}
        for chunk in chunks:
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert texts == {0: "Gr\ufffd", 1: "Gr\ufffd"}


async def test_a_stop_string_ends_the_output_and_the_sequence() -> None:
    async with serving(EchoEngines("one, two")) as served:
        _, answer, _ = await served.ask(COMPLETIONS, {"prompt": "x", "max_tokens": 500, "stop": ", t"})
        assert answer["choices"][0]["text"] == "one"
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 6
        assert served.idle


async def test_the_end_token_ends_the_output_unless_it_is_ignored() -> None:
    async with serving(EchoEngines("")) as served:  # nothing but end tokens
        body = {"prompt": "x", "max_tokens": 9}
        _, answer, _ = await served.ask(COMPLETIONS, body)
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("stop", 1)
        _, answer, _ = await served.ask(COMPLETIONS, {**body, "ignore_eos": True})
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 9)


async def test_sampling_reaches_the_engines_and_unknown_fields_do_no_harm() -> None:
    async with serving() as served:
        asked = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "made_up": {"deep": [1]}, "user": "me"}
        await served.ask(COMPLETIONS, {"prompt": "x", "max_tokens": 1, **asked})
        await served.ask(COMPLETIONS, {"prompt": "x", "max_tokens": 1})
        await served.ask(COMPLETIONS, {"prompt": "x", "max_tokens": 1, "temperature": 0})
        given, default, greedy = (order.sampling for order in served.engines.orders)
        assert (given.temperature, given.top_p, given.seed) == (0.5, 0.9, 7)
        assert (default.temperature, default.top_p) == (1.0, 1.0)
        assert greedy.greedy


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ["a", 1]}, 400, "prompt"),
        ({"prompt": [384]}, 400, "prompt"),
        ({"prompt": "x" * 101}, 400, "prompt"),
        ({"prompt": ["x"] * 65}, 400, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "x", "max_tokens": 51}, 400, "max_tokens"),
        ({"prompt": "x", "temperature": -1}, 400, "temperature"),
        ({"prompt": "x", "top_p": 0}, 400, "top_p"),
        ({"prompt": "x", "stop": ["s"] * 17}, 400, "stop"),
        ({"prompt": "x", "n": 2}, 400, None),
        ({"prompt": "x", "logprobs": 5}, 400, None),
        ({"prompt": "x", "logprobs": 0}, 400, None),
        ({"prompt": "x", "model": "gpt-5"}, 404, "model"),
    ],
)
async def test_what_cannot_be_is_refused_in_openais_form(body: Any, status: int, param: str | None) -> None:
    async with serving(max_prompt_tokens=100, max_output_tokens=50) as served:
        got, answer, _ = await served.ask(COMPLETIONS, body)
        assert got == status
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["param"] == param
        assert answer["error"]["message"]


async def test_bodies_that_are_too_large_or_no_json_are_refused() -> None:
    async with serving(max_body_bytes=1000) as served:
        assert (await served.ask(COMPLETIONS, {"prompt": "x" * 2000}))[0] == 413
        for body, kind, status in [(b"{", "application/json", 400), (b"{}", "text/plain", 415)]:
            async with served.client.post(COMPLETIONS, data=body, headers={"Content-Type": kind}) as response:
                assert response.status == status
                assert "error" in await response.json()
        async with served.client.get(COMPLETIONS) as response:
            assert response.status == 405
        async with served.client.get("/nowhere") as response:
            assert (response.status, (await response.json())["error"]["type"]) == (
                404,
                "invalid_request_error",
            )


async def test_beyond_the_limit_clients_are_told_to_come_back() -> None:
    engines = EchoEngines()
    async with serving(engines, max_requests=2) as served, asyncio.TaskGroup() as group:
        engines.proceed.clear()
        body = {"prompt": "x", "max_tokens": 3}
        tasks = [group.create_task(served.ask(COMPLETIONS, body)) for _ in range(2)]
        await until(lambda: served.endpoint.admission.inside == 2)
        status, answer, headers = await served.ask(COMPLETIONS, body)
        assert (status, answer["error"]["type"], headers["Retry-After"]) == (429, "rate_limit_error", "1")
        engines.proceed.set()
        assert [(await task)[0] for task in tasks] == [200, 200]
        assert (await served.ask(COMPLETIONS, body))[0] == 200


async def test_an_engine_that_fails_before_the_first_token_gives_a_status() -> None:
    async with serving(EchoEngines(fail_at="prefilled")) as served:
        for stream in (False, True):
            status, answer, _ = await served.ask(
                COMPLETIONS, {"prompt": "x", "max_tokens": 3, "stream": stream}
            )
            assert status == 503
            assert "ended in the middle of an order" in answer["error"]["message"]
        assert served.idle


async def test_an_engine_that_fails_later_ends_the_stream_with_an_error() -> None:
    engines = EchoEngines()
    async with serving(engines) as served:
        engines.proceed.clear()
        body = {"prompt": "x", "max_tokens": 3, "stream": True}
        async with served.client.post(COMPLETIONS, json=body) as response:
            await response.content.readuntil(b"\n\n")
            engines.fail_at = "tokens"
            engines.proceed.set()
            rest = (await response.text()).strip()
        assert json.loads(rest.removeprefix("data: "))["error"]["code"] == "engine_error"
        assert served.idle


async def test_when_one_output_of_a_stream_fails_the_others_are_given_up() -> None:
    engines = EchoEngines()
    async with serving(engines) as served:
        engines.proceed.clear()
        engines.fails = "-1"
        body = {"prompt": ["a", "b"], "max_tokens": 3, "stream": True}
        async with served.client.post(COMPLETIONS, json=body) as response:
            assert '"engine_error"' in (await asyncio.wait_for(response.text(), 5))
        await asyncio.wait_for(until(lambda: served.idle and not served.endpoint.admission.inside), 5)


# -- who leaves --------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_what_it_held(stream: bool) -> None:
    engines = EchoEngines()
    async with serving(engines) as served:
        engines.proceed.clear()
        clients = []
        for _ in range(10):
            client = aiohttp.ClientSession(f"http://127.0.0.1:{served.endpoint.port}")
            body = {"prompt": "x", "max_tokens": 100, "stream": stream}
            clients.append((client, asyncio.ensure_future(client.post(COMPLETIONS, json=body))))
        await until(lambda: served.deployment.ledger.tally.emitted_tokens == 10)
        for client, call in clients:
            call.cancel()
            await client.close()
        await until(lambda: served.idle)
        tally = served.deployment.ledger.tally
        await until(lambda: tally.in_flight == 0)
        assert {record.failure_reason for record in tally.requests.values()} == {"the client left"}
        assert served.endpoint.admission.inside == 0


async def test_draining_lets_those_inside_finish_and_nobody_else_in() -> None:
    engines = EchoEngines()
    async with serving(engines) as served, asyncio.TaskGroup() as group:
        engines.proceed.clear()
        inside = group.create_task(served.ask(COMPLETIONS, {"prompt": "x", "max_tokens": 3}))
        await until(lambda: served.endpoint.admission.inside == 1)
        draining = group.create_task(served.endpoint.drain())
        await asyncio.sleep(0)
        status, answer, _ = await served.ask(COMPLETIONS, {"prompt": "x"})
        assert (status, answer["error"]["message"]) == (503, "the server is shutting down")
        assert not draining.done()
        engines.proceed.set()
        assert (await inside)[0] == 200
        await draining


# -- beside the calls --------------------------------------------------------------------------


async def test_a_request_id_is_echoed_and_a_strange_one_replaced() -> None:
    async with serving() as served:
        for path in (COMPLETIONS, "/nowhere"):
            _, _, headers = await served.ask(path, {"prompt": "x"}, **{"X-Request-ID": "abc-1"})
            assert headers["X-Request-ID"] == "abc-1"
        _, _, headers = await served.ask(COMPLETIONS, {"prompt": "x"}, **{"X-Request-ID": "a b" * 99})
        assert len(headers["X-Request-ID"]) == 32


@pytest.mark.parametrize("path", [COMPLETIONS, "/lab/policy"])
async def test_with_a_key_only_its_holder_is_answered(path: str) -> None:
    async with serving(api_key="secret") as served:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            status, answer, _ = await served.ask(path, {"prompt": "x", "threshold": 5}, **header)
            assert (status, answer["error"]["type"]) == (401, "authentication_error")
        body = {"prompt": "x"} if path == COMPLETIONS else {"threshold": 5}
        assert (await served.ask(path, body, Authorization="Bearer secret"))[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:8000", 200), ("evil.example:8000", 403)],
)
async def test_without_a_key_a_page_whose_name_leads_here_may_not_interfere(host: str, status: int) -> None:
    """DNS rebinding: its script is of the same origin then, and may send JSON."""
    async with serving() as served:
        got, answer, _ = await served.ask("/lab/policy", {"threshold": 4}, Host=host)
        assert got == status, answer


async def test_health_says_whether_both_halves_of_a_request_have_an_engine() -> None:
    async with serving() as served:
        async with served.client.get("/health") as response:
            assert response.status == 200
        served.deployment.engines["west-d0"].alive = False
        async with served.client.get("/health") as response:
            assert response.status == 503


async def test_metrics_have_vllms_names_and_ours_and_answer_head() -> None:
    async with serving() as served:
        await served.ask(COMPLETIONS, {"prompt": "x" * 100, "max_tokens": 4})
        async with served.client.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        for line in (
            'vllm:prompt_tokens_total{model_name="echo"} 100.0',
            'vllm:generation_tokens_total{model_name="echo"} 4.0',
            'vllm:time_to_first_token_seconds_count{model_name="echo"} 1.0',
            'vllm:inter_token_latency_seconds_count{model_name="echo"} 3.0',
            'vllm:num_requests_running{model_name="echo"} 0.0',
            'prfaas_requests_routed_total{datacenter="east",model_name="echo",offloaded="true"} 1.0',
            'prfaas_threshold_tokens{model_name="echo"} 64.0',
            'prfaas_transfer_bytes_total{destination="west",model_name="echo",source="east"} 1108.0',
            'prfaas_link_rate_bps{link="wan",model_name="echo",source="east"} 1e+08',
        ):
            assert line in lines
        async with served.client.head("/metrics") as response:
            assert response.status == 200


async def test_tokens_that_are_told_of_at_once_have_a_gap_each_in_the_metrics() -> None:
    """As paced engines tell of them."""
    async with serving() as served:
        record = served.deployment.ledger.record
        record(ev.RequestSubmitted(at_s=0.0, request_id="r", prompt_tokens=1, output_tokens=129))
        for at_s, count in ((1.0, 1), (3.0, 128)):
            record(ev.TokensEmitted(at_s=at_s, request_id="r", engine="west-d0", count=count))
        async with served.client.get("/metrics") as response:
            lines = (await response.text()).splitlines()
    for name in ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"):
        assert f'{name}_count{{model_name="echo"}} 128.0' in lines
        assert f'{name}_sum{{model_name="echo"}} 2.0' in lines
        assert f'{name}_bucket{{le="0.025",model_name="echo"}} 128.0' in lines


# -- changes by hand ---------------------------------------------------------------------------


async def test_a_link_is_changed_while_serving_and_comes_back_when_it_is_over() -> None:
    async with serving() as served:
        status, answer, _ = await served.ask(
            "/lab/links/wan", {"rate": "20Mbit", "source": "east", "lasts": "50ms"}
        )
        assert status == 200
        rates = {link["source"]: link["rate_bps"] for link in answer["links"]}
        assert rates == {"east": 20e6, "west": 1e8}
        await until(lambda: served.deployment.fabric.shape("wan", "east").rate_bps == 1e8)


async def test_the_policy_is_changed_for_the_next_request() -> None:
    async with serving() as served:
        status, answer, _ = await served.ask("/lab/policy", {"threshold": "4"})
        assert (status, answer) == (200, {"policy": "threshold", "threshold_tokens": 4})
        _, answer, _ = await served.ask(COMPLETIONS, {"prompt": "Hello", "max_tokens": 1})
        assert answer["prfaas"][0]["offloaded"]
        await served.ask("/lab/policy", {"name": "local-only"})
        _, answer, _ = await served.ask(COMPLETIONS, {"prompt": "Hello", "max_tokens": 1})
        assert not answer["prfaas"][0]["offloaded"]
        async with served.client.get("/lab/state") as response:
            state = await response.json()
        assert (state["policy"], state["requests"]["completed"]) == ("local-only", 2)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/lab/links/wan", {}, 400),
        ("/lab/links/wan", {"rate": 5}, 400),
        ("/lab/links/wan", {"rate": "5 furlongs"}, 400),
        ("/lab/links/wan", {"rate": "5Mbit", "source": "south"}, 400),
        ("/lab/links/wan", {"outage": "1s", "lasts": "1s"}, 400),
        ("/lab/links/lan", {"rate": "5Mbit"}, 404),
        ("/lab/policy", {"name": "nearest"}, 400),
        ("/lab/policy", {"name": "balanced"}, 400),
        ("/lab/policy", {"name": "earliest-finish"}, 400),
        ("/lab/policy", {}, 400),
        ("/lab/policy", {"treshold": 4}, 400),
    ],
)
async def test_a_change_that_cannot_be_is_refused(path: str, body: Any, status: int) -> None:
    async with serving() as served:
        got, answer, _ = await served.ask(path, body)
        assert got == status, answer


async def test_an_address_that_is_taken_is_said() -> None:
    async with serving() as served:
        with pytest.raises(LabError, match="cannot listen"):
            async with serving_on(served.endpoint.port):
                pass


def serving_on(port: int) -> Any:
    from api_deployment import deployment

    from prfaas_lab.api.endpoint import open_endpoint
    from prfaas_lab.api.settings import EndpointSettings

    return open_endpoint(deployment(EchoEngines()), EndpointSettings(port=port))
