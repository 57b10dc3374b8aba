"""What clients are answered: OpenAI's objects, and beside them what a PrfaaS lab alone can tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prfaas_lab.metrics.handover import handover
from prfaas_lab.metrics.requests import RequestRecord

Json = dict[str, Any]
Kind = Literal["completion", "chat"]

DONE = b"data: [DONE]\n\n"


def event(value: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What every object of one call begins with."""

    kind: Kind
    id: str
    created: int
    model: str

    def whole(self, texts: Sequence[tuple[str, str | None]], records: Sequence[RequestRecord]) -> Json:
        """The answer at once: (text, finish reason) of each output."""
        return {
            **self._head("text_completion", "chat.completion"),
            "choices": [self._choice(i, text, finish) for i, (text, finish) in enumerate(texts)],
            "usage": usage(records),
            "prfaas": [served(record) for record in records],
        }

    def chunk(self, index: int, text: str, finish: str | None, *, first: bool) -> Json:
        """One token of one output."""
        if self.kind == "completion":
            choice: Json = {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
        else:
            delta = {"role": "assistant", "content": text} if first else {"content": text}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head("text_completion", "chat.completion.chunk"), "choices": [choice]}

    def last(self, records: Sequence[RequestRecord]) -> Json:
        """The chunk without choices that tells the usage."""
        return {
            **self._head("text_completion", "chat.completion.chunk"),
            "choices": [],
            "usage": usage(records),
            "prfaas": [served(record) for record in records],
        }

    def _head(self, completion: str, chat: str) -> Json:
        kind = completion if self.kind == "completion" else chat
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, index: int, text: str, finish: str | None) -> Json:
        if self.kind == "completion":
            return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
        message = {"role": "assistant", "content": text}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}


def usage(records: Sequence[RequestRecord]) -> Json:
    prompt = sum(record.prompt_tokens for record in records)
    completion = sum(record.emitted_tokens for record in records)
    cached = sum(record.cached_tokens or 0 for record in records)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def served(record: RequestRecord) -> Json:
    """Where a request's prefill ran, and how its KVCache was handed over (`lab.metrics.handover`)."""
    legs = handover(record)
    return {
        "request_id": record.id,
        "prefill": record.prefill,
        "decode": record.decode,
        "offloaded": record.offloaded,
        "reason": record.reason,
        "uncached_tokens": record.uncached_tokens,
        "cached_tokens": record.cached_tokens or 0,
        "kvcache_bytes": record.received_bytes,
        "ttft_ms": None if record.ttft_s is None else round(1e3 * record.ttft_s, 3),
        "handover_ms": {name: round(ms, 3) for name, ms in legs._asdict().items()} if legs else None,
    }


def headers(record: RequestRecord) -> dict[str, str]:
    """What is known of a request when its first token comes."""
    return {
        "X-Prfaas-Request": record.id,
        "X-Prfaas-Prefill": record.prefill or "",
        "X-Prfaas-Decode": record.decode or "",
        "X-Prfaas-Offloaded": "true" if record.offloaded else "false",
        "X-Prfaas-Cached-Tokens": str(record.cached_tokens or 0),
        "X-Prfaas-Ttft-Ms": "" if record.ttft_s is None else f"{1e3 * record.ttft_s:.3f}",
    }
