"""Prefill here, decode there: the tokens are those of one process, and a lost state or block shows."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

import pytest
from transformers import PreTrainedModel

from prfaas_lab.engine.corruption import Corruption, corruption_filter
from prfaas_lab.engine.decode import DecodeEngine
from prfaas_lab.engine.prefill import PrefillEngine, PrefillJob
from prfaas_lab.engine.torch_executor import TorchDecode, TorchPrefill
from prfaas_lab.model.torch_cache import layout_of
from prfaas_lab.model.torch_reference import Reference, compare, generate

pytestmark = pytest.mark.model
CHUNK = 128
LENGTHS = [1, 63, 64, 65, CHUNK - 1, CHUNK, CHUNK + 1, 300, 600]
MAX_BATCH = 3
PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Ask:
    prompt: tuple[int, ...]
    output_tokens: int

    @classmethod
    def number(cls, number: int, tokens: int) -> Ask:
        return cls(tuple((i * i * 31 + i * 7919 + number) % 384 for i in range(tokens)), 8 + 3 * number % 11)


async def disaggregated(
    model: PreTrainedModel, asks: list[Ask], corruption: Corruption | None = None
) -> list[list[int]]:
    """All requests at once through one prefill and one decode engine; bytes are copied in between."""
    layout = layout_of(model, CHUNK)
    outgoing = corruption_filter(corruption, layout) if corruption else None
    async with (
        asyncio.timeout(PATIENCE_S),
        PrefillEngine(TorchPrefill(model, layout, outgoing), max_queue=64, clock=time.monotonic) as prefill,
        DecodeEngine(
            TorchDecode(model, layout, max_batch=MAX_BATCH), max_batch=MAX_BATCH, clock=time.monotonic
        ) as decode,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(served(prefill, decode, str(i), ask)) for i, ask in enumerate(asks)]
    return [task.result() for task in tasks]


async def served(prefill: PrefillEngine, decode: DecodeEngine, request_id: str, ask: Ask) -> list[int]:
    incoming = decode.reserve(request_id, len(ask.prompt), ask.output_tokens)

    def emit(key, segment):  # type: ignore[no-untyped-def]
        incoming.destination(key, segment.nbytes)[:] = segment
        incoming.arrived(key)

    result = await prefill.run(PrefillJob(request_id=request_id, prompt=ask.prompt), emit)
    assert incoming.complete
    async with contextlib.aclosing(decode.generate(request_id, result.first_token)) as tokens:
        return [token async for token in tokens]


def references(model: PreTrainedModel, asks: list[Ask]) -> list[Reference]:
    return [generate(model, ask.prompt, ask.output_tokens, CHUNK) for ask in asks]


async def outcomes(
    model: PreTrainedModel, asks: list[Ask], corruption: Corruption | None = None
) -> list[str]:
    answers = await disaggregated(model, asks, corruption)
    return [compare(r, tokens) for r, tokens in zip(references(model, asks), answers, strict=True)]


async def test_disaggregated_tokens_are_those_of_one_process(model: PreTrainedModel) -> None:
    asks = [Ask.number(i, tokens) for i, tokens in enumerate(LENGTHS)]
    found = await outcomes(model, asks)
    assert "mismatch" not in found
    assert found.count("match") >= len(asks) - 1, "a tie is rarer than one token in ten thousand"


@pytest.mark.parametrize("corruption", ["recurrent-state", "conv-state"])
async def test_a_lost_state_shows_in_the_tokens(model: PreTrainedModel, corruption: Corruption) -> None:
    asks = [Ask.number(i, tokens) for i, tokens in enumerate([64, 65, CHUNK + 1, 300, 600])]
    assert set(await outcomes(model, asks, corruption)) == {"mismatch"}


async def test_a_lost_block_shows_in_the_tokens(model: PreTrainedModel) -> None:
    asks = [Ask.number(i, tokens) for i, tokens in enumerate([64, CHUNK + 1, 300, 600])]
    assert set(await outcomes(model, asks, "kv-block")) == {"mismatch"}
