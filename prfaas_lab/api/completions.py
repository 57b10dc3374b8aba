"""`/v1/completions` and `/v1/chat/completions`: from a body to requests, and from pieces to an answer."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Sequence
from typing import TypeVar

from aiohttp import web
from pydantic import ValidationError

from prfaas_lab.api import answers
from prfaas_lab.api.admission import Admission
from prfaas_lab.api.answers import Envelope, Kind
from prfaas_lab.api.asked import ChatRequest, CompletionRequest, Generate, Prompt
from prfaas_lab.api.errors import ApiError, refused
from prfaas_lab.api.generation import Ask, Ended, Generation, generating
from prfaas_lab.api.output import Output
from prfaas_lab.api.settings import EndpointSettings
from prfaas_lab.api.tokenizer import Tokenizer
from prfaas_lab.lab.deployment import Deployment
from prfaas_lab.metrics.requests import RequestRecord
from prfaas_lab.workload.request import Request, Sampling

G = TypeVar("G", bound=Generate)


class Completions:
    """Serves both kinds of calls on a deployment."""

    def __init__(
        self,
        deployment: Deployment,
        tokenizer: Tokenizer,
        admission: Admission,
        settings: EndpointSettings,
        model: str,
    ) -> None:
        self._deployment, self._tokenizer = deployment, tokenizer
        self._admission, self._settings, self._model = admission, settings, model
        self._serial = itertools.count(1)

    async def complete(self, http: web.Request) -> web.StreamResponse:
        asked = await self._asked(http, CompletionRequest)
        prompts = [self._ids(prompt) for prompt in asked.prompt]
        return await self._answer(http, asked, prompts, "completion")

    async def chat(self, http: web.Request) -> web.StreamResponse:
        asked = await self._asked(http, ChatRequest)
        try:
            ids = self._tokenizer.encode_chat([(m.role, m.text) for m in asked.messages])
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from error
        return await self._answer(http, asked, [tuple(ids)], "chat")

    # -- what is asked -----------------------------------------------------------------------------

    async def _asked(self, http: web.Request, kind: type[G]) -> G:
        try:
            asked = kind.model_validate_json(await http.read())
        except ValidationError as error:
            raise refused(error) from error
        if asked.model not in (None, self._model):
            raise ApiError(
                404, f"there is no model {asked.model!r}; this server has {self._model!r}",
                param="model", code="model_not_found",
            )  # fmt: skip
        return asked

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(prompt)) if isinstance(prompt, str) else prompt

    def _asks(self, asked: Generate, prompts: Sequence[tuple[int, ...]], kind: Kind, call: str) -> list[Ask]:
        settings = self._settings
        default = settings.default_output_tokens if kind == "completion" else settings.default_chat_tokens
        output_tokens = asked.output_tokens or min(default, settings.max_output_tokens)
        if output_tokens > settings.max_output_tokens:
            raise ApiError(
                400,
                f"max_tokens={output_tokens} is more than {settings.max_output_tokens}",
                param="max_tokens",
            )
        stop_ids = tuple(asked.stop_token_ids or ())
        if not asked.ignore_eos:
            stop_ids += self._tokenizer.eos_ids
        return [
            self._ask(asked, prompt, output_tokens, stop_ids, call if not i else f"{call}-{i}")
            for i, prompt in enumerate(prompts)
        ]

    def _ask(
        self, asked: Generate, prompt: tuple[int, ...], output_tokens: int, stop_ids: tuple[int, ...], id: str
    ) -> Ask:
        self._check_prompt(prompt)
        sampling = Sampling(
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=self._seed(id) if asked.seed is None else asked.seed,
            stop_ids=stop_ids,
        )
        output = Output(
            self._tokenizer.detokenizer(), output_tokens=output_tokens, stop_ids=stop_ids, stop=asked.stop
        )
        return Ask(
            Request(id=id, arrival_s=None, prompt=prompt, output_tokens=output_tokens, sampling=sampling),
            output,
        )

    def _check_prompt(self, prompt: tuple[int, ...]) -> None:
        if not prompt:
            raise ApiError(400, "the prompt has no tokens", param="prompt")
        if len(prompt) > self._settings.max_prompt_tokens:
            raise ApiError(
                400, f"the prompt has {len(prompt)} tokens, and {self._settings.max_prompt_tokens} may be",
                param="prompt", code="context_length_exceeded",
            )  # fmt: skip
        size = self._deployment.model.vocab_size  # None: paced engines, which take any token
        if size is not None and max(prompt) >= size:
            raise ApiError(400, f"token {max(prompt)} is not in the vocabulary of {size}", param="prompt")

    def _seed(self, id: str) -> int:
        """Nobody gave one: it follows from the run's, so that the same calls give the same run."""
        text = f"{self._deployment.resolved.scenario.seed}/{id}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")

    # -- what is answered --------------------------------------------------------------------------

    async def _answer(
        self, http: web.Request, asked: Generate, prompts: Sequence[tuple[int, ...]], kind: Kind
    ) -> web.StreamResponse:
        call = f"{'cmpl' if kind == 'completion' else 'chatcmpl'}-{next(self._serial):08d}"
        asks = self._asks(asked, prompts, kind, call)
        envelope = Envelope(kind=kind, id=call, created=int(time.time()), model=self._model)
        with self._admission.enter(len(asks)):
            async with generating(self._deployment.service, asks) as generation:
                if asked.stream:
                    return await self._stream(http, asked, envelope, asks, generation)
                return await self._whole(envelope, asks, generation)

    async def _whole(self, envelope: Envelope, asks: Sequence[Ask], generation: Generation) -> web.Response:
        texts: list[list[str]] = [[] for _ in asks]
        finishes: list[str | None] = [None for _ in asks]
        while (item := await generation.next()) is not None:
            number, piece = item
            if isinstance(piece, Ended):
                self._check(piece, asks[number])
            else:
                texts[number].append(piece.text)
                finishes[number] = piece.finish
        records = self._records(asks)
        answer = envelope.whole([("".join(t), f) for t, f in zip(texts, finishes, strict=True)], records)
        return web.json_response(answer, headers=answers.headers(records[0]))

    async def _stream(
        self, http: web.Request, asked: Generate, envelope: Envelope, asks: Sequence[Ask],
        generation: Generation,
    ) -> web.StreamResponse:  # fmt: skip
        """The head waits for the first token: a failure until then has its status, and where prefill ran
        is known."""
        item = await generation.next()
        assert item is not None, "there is at least one ask"
        if isinstance(item[1], Ended):
            self._check(item[1], asks[item[0]])
        stream = _EventStream(http, self._settings.write_timeout_s)
        await stream.open(answers.headers(self._records(asks)[item[0]]))
        begun: set[int] = set()
        while item is not None:
            number, piece = item
            if isinstance(piece, Ended):
                if piece.failed:
                    return await stream.fail(self._failure(asks[number]))
            else:
                first = number not in begun
                begun.add(number)
                await stream.send(envelope.chunk(number, piece.text, piece.finish, first=first))
            item = await generation.next()
        return await stream.close(envelope.last(self._records(asks)) if asked.wants_usage else None)

    def _check(self, ended: Ended, ask: Ask) -> None:
        if ended.failed:
            raise self._failure(ask)

    def _failure(self, ask: Ask) -> ApiError:
        record = self._record(ask)
        reason = f"failed at {record.failure_stage}: {record.failure_reason}"
        return ApiError(503, reason, code="engine_error", headers={"Retry-After": "1"})

    def _records(self, asks: Sequence[Ask]) -> list[RequestRecord]:
        return [self._record(ask) for ask in asks]

    def _record(self, ask: Ask) -> RequestRecord:
        return self._deployment.ledger.tally.requests[ask.request.id]


class _EventStream:
    """Server-sent events to a client that may be slow, within limits."""

    def __init__(self, http: web.Request, timeout_s: float) -> None:
        self._http, self._timeout_s = http, timeout_s
        self._response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )

    async def open(self, headers: dict[str, str]) -> None:
        self._response.headers.update(headers)
        await self._response.prepare(self._http)

    async def send(self, value: answers.Json) -> None:
        await self._write(answers.event(value))

    async def fail(self, error: ApiError) -> web.StreamResponse:
        """The status is out already: the error is told as an event, and the stream has no end mark."""
        await self._write(answers.event(error.body))
        await self._response.write_eof()
        return self._response

    async def close(self, last: answers.Json | None) -> web.StreamResponse:
        if last is not None:
            await self.send(last)
        await self._write(answers.DONE)
        await self._response.write_eof()
        return self._response

    async def _write(self, text: bytes) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._response.write(text)
        except TimeoutError:
            raise ConnectionResetError("the client reads nothing") from None
