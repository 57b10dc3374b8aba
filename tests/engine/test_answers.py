"""Claims about answers: the next turn resumes from what decode computed, and says what it would have said."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

import numpy as np
import pytest
from transformers import PreTrainedModel

from prfaas_lab.engine.answers import Answers
from prfaas_lab.engine.decode import DecodeEngine
from prfaas_lab.engine.prefill import PrefillEngine, PrefillJob, PrefillResult
from prfaas_lab.engine.prefix_cache import PrefixCache
from prfaas_lab.engine.prefix_copies import Landing, Loan
from prfaas_lab.engine.torch_executor import TorchDecode, TorchPrefill
from prfaas_lab.errors import EngineError
from prfaas_lab.kvcache import Prompt, extend_prompt, hash_prompt
from prfaas_lab.model.buffers import Produced
from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.model.torch_cache import layout_of
from prfaas_lab.model.torch_reference import Reference, compare, generate

pytestmark = pytest.mark.model
CHUNK, PLENTY, SPACE = 64, 1 << 26, b"answers"
PATIENCE_S = 30.0
Damage = Callable[[SegmentKey, memoryview], memoryview]


def unharmed(_: SegmentKey, segment: memoryview) -> memoryview:
    return segment


@dataclass
class Site:
    """A prefill and a decode engine, and what they hold; `turn` serves a request through both."""

    model: PreTrainedModel
    stack: AsyncExitStack
    damage: Damage = unharmed
    served: int = 0
    handed_bytes: list[int] = field(default_factory=list)

    async def __aenter__(self) -> Site:
        layout = self.layout = layout_of(self.model, CHUNK)
        self.near = PrefixCache.of(layout, PLENTY, resumable=True)
        self.far = PrefixCache.of(layout, PLENTY, resumable=False)
        self.answers = Answers(self.far, limit=4)
        prefill, decode = TorchPrefill(self.model, layout), TorchDecode(
            self.model, layout, max_batch=4, keep_answers=True
        )  # fmt: skip
        self.prefill = await self.stack.enter_async_context(
            PrefillEngine(prefill, max_queue=8, clock=time.monotonic, cache=self.near)
        )
        self.decode = await self.stack.enter_async_context(
            DecodeEngine(decode, max_batch=4, clock=time.monotonic)
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stack.aclose()
        for cache in (self.near, self.far):
            cache.pool.check()

    async def turn(self, prompt: Sequence[int], tokens: int) -> tuple[PrefillResult, list[int]]:
        self.served += 1
        name, blocks = f"r{self.served}", named(prompt)
        cache = self.decode.reserve(name, len(prompt), tokens)
        self.far.fill(blocks, cache)

        def land(key: SegmentKey, segment: memoryview) -> None:
            if key not in cache.held:
                cache.destination(key, segment.nbytes)[:] = segment
                cache.arrived(key)

        job = PrefillJob(request_id=name, prompt=prompt, blocks=blocks)
        result = await self.prefill.run(job, land)
        self.far.keep_received(blocks, cache)
        said: list[int] = []
        given = self.decode.generate(
            name, result.first_token, on_left=lambda produced: self.answers.keep(name, produced)
        )
        async with aclosing(given) as steps:
            async for some in steps:
                said += some
        return result, said

    async def hand_over(self, prompt: Sequence[int], said: Sequence[int]) -> int:
        """What the lab does between two turns; the tokens that can be resumed from then."""
        reach = (len(prompt) + len(said) - 1) // CHUNK * CHUNK
        whole = named([*prompt, *said][:reach])
        with await self.answers.take(f"r{self.served}") as transfer:
            produced: Produced = transfer.payload
            assert produced.tokens == reach
            with Landing(self.near, resumable(whole)) as landing:
                with Loan.of_answer(self.far, whole, landing.held_tokens, produced) as loan:
                    for key, segment in loan.segments:
                        landing.destination(key, segment.nbytes)[:] = self.damage(key, segment)
                self.handed_bytes.append(sum(segment.nbytes for _, segment in loan.segments))
                return landing.adopt(decoded_from=len(prompt) // CHUNK * CHUNK)


def named(tokens: Sequence[int]) -> Prompt:
    return hash_prompt(tokens, block_tokens=CHUNK, namespace=SPACE)


def resumable(prompt: Prompt) -> Prompt:
    """All of whose blocks may be reused: one token more."""
    return prompt.beginning(len(prompt.blocks))


def text(seed: int, tokens: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(384) for _ in range(tokens)]


def judged(model: PreTrainedModel, prompt: Sequence[int], said: Sequence[int]) -> str:
    reference: Reference = generate(model, prompt, len(said), CHUNK)
    return compare(reference, said)


async def test_later_turns_resume_inside_the_answer_and_say_the_same(model: PreTrainedModel) -> None:
    async with AsyncExitStack() as stack, Site(model, stack) as site:
        prompt, reach = text(1, 150), 0
        for turn in range(3):
            result, said = await site.turn(prompt, 90)
            assert judged(model, prompt, said) in ("match", "tie")
            assert result.cached_tokens == reach
            assert (result.decoded_tokens > 0) == (turn > 0)
            reach = await site.hand_over(prompt, said)
            assert reach == (len(prompt) + 89) // CHUNK * CHUNK
            prompt = [*prompt, *said, *text(turn, 40)]


async def test_only_what_the_prefill_engine_lacks_is_handed_over(qwen: PreTrainedModel) -> None:
    async with AsyncExitStack() as stack, Site(qwen, stack) as site:
        prompt = text(1, 3 * CHUNK + 5)
        _, said = await site.turn(prompt, CHUNK)
        assert await site.hand_over(prompt, said) == 4 * CHUNK
        layout = site.layout
        assert site.handed_bytes == [layout.state_bytes + CHUNK * layout.token_bytes]
        assert site.far.pool.match(resumable(named([*prompt, *said]))).tokens == 4 * CHUNK


async def nothing_is_kept(answers: Answers) -> None:
    """And who asks is told at once: without the wait for an answer that may yet come, made long here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prfaas_lab.engine.answers._LEAVE_TIMEOUT_S", 10 * PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(EngineError, match="nothing is kept"):
                await answers.take("r1")


async def test_an_answer_that_came_to_no_boundary_leaves_nothing(qwen: PreTrainedModel) -> None:
    async with AsyncExitStack() as stack, Site(qwen, stack) as site:
        await site.turn(text(1, CHUNK + 3), 20)
        await nothing_is_kept(site.answers)


async def test_an_answer_without_room_is_refused_at_once(qwen: PreTrainedModel) -> None:
    answers = Answers(PrefixCache.of(layout_of(qwen, CHUNK), 10, resumable=False), limit=1)
    answers.keep("r1", Produced(0, CHUNK, ((SegmentKey(0, 0, 0), memoryview(b"more than there is")),)))
    await nothing_is_kept(answers)


async def test_answers_nobody_asks_for_take_no_more_than_their_limit(qwen: PreTrainedModel) -> None:
    async with AsyncExitStack() as stack, Site(qwen, stack) as site:
        for _ in range(6):
            await site.turn(text(1, CHUNK), CHUNK + 1)
        stats = site.far.pool.stats()
        assert stats.transfers == 4
        assert stats.pinned_bytes == 4 * site.layout.request_bytes(CHUNK)
        # Who asks for one that was dropped must not hold up the others.
        await nothing_is_kept(site.answers)


async def test_what_decode_computed_is_what_prefill_computes_but_for_rounding(model: PreTrainedModel) -> None:
    """Segment by segment. A prefill over the same tokens differs by float32 noise, and by no more."""
    async with AsyncExitStack() as stack, Site(model, stack) as site:
        prompt = text(1, 150)
        _, said = await site.turn(prompt, 130)
        with await site.answers.take("r1") as transfer:
            produced: Produced = transfer.payload
        computed: dict[SegmentKey, memoryview] = {}
        whole = [*prompt, *said][: produced.tokens]
        await site.prefill.run(PrefillJob(request_id="again", prompt=whole), computed.__setitem__)
        assert (produced.first_token, produced.tokens) == (2 * CHUNK, 4 * CHUNK)
        for key, segment in produced.segments:
            np.testing.assert_allclose(numbers(segment), numbers(computed[key]), atol=2e-5)
        assert {key for key, _ in produced.segments} == {key for key in computed if key.chunk >= 2}


def numbers(segment: memoryview) -> np.ndarray:
    return np.frombuffer(segment, dtype=np.float32)


async def test_a_damaged_answer_changes_what_is_said(qwen: PreTrainedModel) -> None:
    """Proves that the comparison of tokens would notice an answer handed over wrong."""
    layout = layout_of(qwen, CHUNK)

    def spoil(key: SegmentKey, segment: memoryview) -> memoryview:
        state = layout.layers[key.layer].parts[key.part].kind == "state"
        return memoryview(bytes(segment.nbytes)) if state else segment

    async with AsyncExitStack() as stack, Site(qwen, stack, damage=spoil) as site:
        prompt = text(1, 150)
        _, said = await site.turn(prompt, 130)
        await site.hand_over(prompt, said)
        prompt = [*prompt, *said, *text(2, 30)]
        result, said = await site.turn(prompt, 60)
        assert result.decoded_tokens > 0
        assert judged(qwen, prompt, said) == "mismatch"


def test_a_prompt_extended_by_what_was_said_is_the_prompt_of_both() -> None:
    prompt, said = text(1, 150), text(2, 100)
    extended = extend_prompt(named(prompt), [*prompt[2 * CHUNK :], *said], namespace=SPACE)
    assert extended == named([*prompt, *said])
    assert extend_prompt(named([]), prompt, namespace=SPACE) == named(prompt)
