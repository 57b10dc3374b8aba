"""Prefill here, decode there: the tokens are those of one process, and a lost state or block shows."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from prfaas_lab.engine.corruption import Corruption, corruption_filter
from prfaas_lab.engine.decode import DecodeEngine
from prfaas_lab.engine.prefill import PrefillEngine, PrefillJob
from prfaas_lab.engine.torch_executor import TorchDecode, TorchPrefill, sampler_of
from prfaas_lab.model.buffers import chunk_spans
from prfaas_lab.model.torch_build import lengthen_memory
from prfaas_lab.model.torch_cache import layout_of, new_cache
from prfaas_lab.model.torch_reference import Reference, compare, forward, generate
from prfaas_lab.workload.request import GREEDY, Sampling

pytestmark = pytest.mark.model
CHUNK = 128
LENGTHS = [1, 63, 64, 65, CHUNK - 1, CHUNK, CHUNK + 1, 300, 600]
MAX_BATCH = 3
PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Ask:
    prompt: tuple[int, ...]
    output_tokens: int
    sampling: Sampling = GREEDY

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
    incoming = decode.reserve(request_id, len(ask.prompt), ask.output_tokens, ask.sampling)

    def emit(key, segment):  # type: ignore[no-untyped-def]
        incoming.destination(key, segment.nbytes)[:] = segment
        incoming.arrived(key)

    result = await prefill.run(
        PrefillJob(request_id=request_id, prompt=ask.prompt, sampling=ask.sampling), emit
    )
    assert incoming.complete
    async with contextlib.aclosing(decode.generate(request_id, result.first_token)) as tokens:
        return [token async for some in tokens for token in some]


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


SMALL = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DELTA = {"linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
MAMBA = {"mamba_head_dim": 16, "ssm_state_size": 16, "head_dim": 16, "n_groups": 1}
OTHER_FAMILIES = {
    "qwen3_5_text": {"head_dim": 32, "linear_num_key_heads": 2, **DELTA},
    "olmo_hybrid": {"linear_num_key_heads": 4, **DELTA},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "granitemoehybrid": {
        "layer_types": ["mamba", "mamba", "attention", "mamba"],
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 64,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "mamba", "mlp"],
        "mamba_num_heads": 4,
        **MAMBA,
    },
}


@pytest.mark.parametrize("family", OTHER_FAMILIES)
async def test_other_hybrids_of_linear_and_full_attention_are_served_too(family: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **OTHER_FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    lengthen_memory(model, 0)
    asks = [Ask.number(i, tokens) for i, tokens in enumerate([1, 64, CHUNK + 1])]
    assert "mismatch" not in await outcomes(model, asks)


async def test_sampled_tokens_are_those_that_one_process_draws_with_the_seed(model: PreTrainedModel) -> None:
    samplings = [Sampling(temperature=1.0, top_p=0.9, seed=seed) for seed in range(4)]
    asks = [
        Ask(Ask.number(i, 65 * (i + 1)).prompt, 12, sampling)
        for i, sampling in enumerate([*samplings, GREEDY])
    ]
    answers = await disaggregated(model, asks)
    assert answers == [alone(model, ask) for ask in asks]
    assert answers != await disaggregated(model, [replace(ask, sampling=GREEDY) for ask in asks])


@torch.inference_mode()
def alone(model: PreTrainedModel, ask: Ask) -> list[int]:
    cache, sampler, tokens = new_cache(model), sampler_of(ask.sampling), []
    for first, end in chunk_spans(len(ask.prompt), CHUNK):
        logits = forward(model, cache, ask.prompt[first:end])
    while True:
        tokens.append(sampler.pick(logits))
        if len(tokens) == ask.output_tokens:
            return tokens
        logits = forward(model, cache, tokens[-1:])
