"""The transfer bench: its shapes are the models', its table reads, and it runs over a real link."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prfaas_lab.lab.transfer_bench import BenchLink, BenchOptions, Row, run_bench, table
from prfaas_lab.lab.transfer_shapes import (
    MIB,
    MODELS,
    SHAPES,
    kimi_linear_48b,
    of_model,
    paced,
    plain,
    qwen3_next_80b,
)


def test_the_patterns_weigh_what_the_models_caches_weigh():
    qwen, kimi = qwen3_next_80b(1024), kimi_linear_48b(1024)
    assert (qwen.token_bytes, qwen.state_bytes / MIB) == (24_576, 74.25)
    assert kimi.token_bytes == 8_064
    assert 40 < kimi.state_bytes / MIB < 44


@pytest.mark.parametrize("tokens", [1, 1024, 5000])
def test_a_pattern_holds_every_byte_of_the_request(tokens):
    for name, model in MODELS.items():
        layout = model(1024)
        assert of_model(name, layout, tokens).total_bytes == layout.request_bytes(tokens)


def test_the_plain_shapes_weigh_the_same():
    assert {shape.total_bytes for shape in SHAPES[:3]} == {32 * MIB}


def test_a_paced_pattern_ends_with_its_prefill_and_never_goes_back_in_time():
    shape = paced("kimi", kimi_linear_48b(8192), 32768, 10.0)
    assert list(shape.ready_s) == sorted(shape.ready_s)
    assert shape.ready_s[-1] == 10.0
    assert len(shape.ready_s) == len(shape.sizes)


def test_a_table_has_a_line_for_each_row_and_says_who_failed():
    row = Row(
        link="l",
        shape="s",
        runner="r",
        goodput_bps=1e6,
        share_of_link=0.5,
        share_of_iperf3=None,
        cpu_s_per_gb=1,
    )
    lines = table([row, replace(row, failure="why")]).splitlines()
    assert len(lines) == 3
    assert "50.0%" in lines[1]
    assert "failed" in lines[2]


@pytest.mark.emulation
@pytest.mark.realtime
async def test_a_small_bench_runs_over_a_shaped_link():
    link = BenchLink(rate_bps=200e6, rtt_s=0.01)
    rows = await run_bench(
        BenchOptions(links=(link,), shapes=(plain(16, 65536),), seconds=1, iperf3=False, paced=False)
    )
    assert [bool(row.killed) for row in rows] == [False, True]
    assert 0.3 < (rows[0].share_of_link or 0) < 1.1
