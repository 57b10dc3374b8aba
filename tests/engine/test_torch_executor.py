"""Prefill streams while it computes, starts from a cached prefix, and ends when it is told to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading

import pytest
from transformers import PreTrainedModel

from prfaas_lab.engine.torch_executor import TorchPrefill
from prfaas_lab.errors import EngineError
from prfaas_lab.model.buffers import segment_keys
from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.model.torch_cache import layout_of
from prfaas_lab.model.torch_reference import generate

pytestmark = pytest.mark.model
CHUNK = 64
PROMPT = tuple(i * 31 % 384 for i in range(5 * CHUNK + 7))


def ignore(key: SegmentKey, segment: memoryview) -> None:
    pass


async def test_segments_come_chunk_by_chunk_and_layer_by_layer_on_the_loop(model: PreTrainedModel) -> None:
    layout, seen = layout_of(model, CHUNK), []
    executor = TorchPrefill(model, layout)

    def emit(key: SegmentKey, segment: memoryview) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert segment.nbytes == layout.segment_bytes(key, len(PROMPT))
        seen.append(key)

    first_token = await executor.prefill(PROMPT, emit)
    await executor.close()
    assert seen == list(segment_keys(layout, len(PROMPT)))
    assert first_token == generate(model, PROMPT, 1, CHUNK).tokens[0]


async def test_the_loop_goes_on_while_the_model_computes(qwen: PreTrainedModel) -> None:
    executor = TorchPrefill(qwen, layout_of(qwen, CHUNK))
    arrived: list[SegmentKey] = []
    running = asyncio.create_task(executor.prefill(PROMPT * 8, lambda key, _: arrived.append(key)))
    seen = set()
    while not running.done():
        seen.add(len(arrived))
        await asyncio.sleep(0)
    await executor.close()
    assert len(seen) > 10, "segments came in a lump after computing"


async def test_an_emit_that_fails_ends_the_prefill_with_its_error(qwen: PreTrainedModel) -> None:
    executor = TorchPrefill(qwen, layout_of(qwen, CHUNK))
    calls = []

    def emit(key: SegmentKey, segment: memoryview) -> None:
        calls.append(key)
        raise ConnectionError("the peer has gone")

    with pytest.raises(ConnectionError, match="the peer has gone"):
        await executor.prefill(PROMPT, emit)
    assert len(calls) == 1
    assert isinstance(await executor.prefill(PROMPT, ignore), int)
    await executor.close()


async def test_an_emit_that_fails_at_the_very_end_is_not_overlooked(qwen: PreTrainedModel) -> None:
    executor = TorchPrefill(qwen, layout_of(qwen, CHUNK))
    last = list(segment_keys(executor.layout, len(PROMPT)))[-1]

    def emit(key: SegmentKey, segment: memoryview) -> None:
        if key == last:
            raise ConnectionError("the peer has gone")

    with pytest.raises(ConnectionError):
        await executor.prefill(PROMPT, emit)
    await executor.close()


async def test_a_cancelled_prefill_emits_no_more_and_frees_the_thread(qwen: PreTrainedModel) -> None:
    executor = TorchPrefill(qwen, layout_of(qwen, CHUNK))
    arrived: list[SegmentKey] = []
    first = asyncio.Event()

    def emit(key: SegmentKey, segment: memoryview) -> None:
        arrived.append(key)
        first.set()

    running = asyncio.create_task(executor.prefill(PROMPT * 20, emit))
    await first.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    count = len(arrived)
    await executor.prefill(PROMPT, ignore)
    assert len(arrived) == count < len(list(segment_keys(executor.layout, len(PROMPT) * 20))) // 2
    await executor.close()


async def test_closing_ends_a_running_prefill(qwen: PreTrainedModel) -> None:
    executor = TorchPrefill(qwen, layout_of(qwen, CHUNK))
    started = asyncio.Event()
    running = asyncio.create_task(executor.prefill(PROMPT * 20, lambda *_: started.set()))
    await started.wait()
    await executor.close()
    with pytest.raises(EngineError, match="closed"):
        await running


async def test_a_failure_of_the_model_reaches_the_caller(qwen: PreTrainedModel) -> None:
    executor = TorchPrefill(qwen, layout_of(qwen, CHUNK))
    with pytest.raises(IndexError):
        await executor.prefill((1, 10**6), ignore)
    assert isinstance(await executor.prefill(PROMPT, ignore), int)
    await executor.close()


def test_an_engine_forked_after_loading_computes_in_its_own_thread() -> None:
    """As the zygote does: build in the parent's main thread, fork, run torch in the child's worker."""
    program = """
        import asyncio, os, sys
        from prfaas_lab.engine.torch_executor import TorchPrefill
        from prfaas_lab.model.torch_build import build
        from prfaas_lab.model.torch_cache import layout_of
        from prfaas_lab.model.torch_reference import generate
        from prfaas_lab.spec.scenario import Model
        import torch

        async def child():
            executor = TorchPrefill(model, layout)
            token = await executor.prefill(prompt, lambda *_: None)
            threads = await executor._thread.run(torch.get_num_threads)
            await executor.close()
            return 0 if (token, threads) == (expected, 1) else 1

        model = build(Model())
        layout, prompt = layout_of(model, 64), range(200)
        expected = generate(model, prompt, 1, 64).tokens[0]
        children = []
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                os._exit(asyncio.run(child()))
            children.append(pid)
        sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
    """
    environment = {"OMP_NUM_THREADS": "2", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
