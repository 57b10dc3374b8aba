"""Traces become requests: lengths and sharing as recorded, tokens made up, mistakes by line."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.workload.request import Request
from prfaas_lab.workload.traces import (
    TRACES,
    TraceError,
    TraceRow,
    TraceScale,
    read_azure,
    read_mooncake,
    trace_requests,
)

DATA = Path("/work/shared/data")
ROWS = [
    {"timestamp": 1000, "input_length": 1300, "output_length": 10, "hash_ids": [0, 1, 2]},
    {"timestamp": 1000, "input_length": 1024, "output_length": 0, "hash_ids": [0, 1]},
    {"timestamp": 4500, "input_length": 600, "output_length": 7, "hash_ids": [0, 3]},
]
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def requests(file: Path, *, seed: int = 1, **scale: float) -> list[Request]:
    rows = read_mooncake(file)
    return list(trace_requests(rows, seed=seed, vocabulary=1000, first_token=3, scale=TraceScale(**scale)))  # type: ignore[arg-type]


def test_equal_ids_give_equal_tokens_and_other_ids_others(trace: Path) -> None:
    a, b, c = (request.prompt for request in requests(trace))
    assert (len(a), len(b), len(c)) == (1300, 1024, 600)
    assert a[:1024] == b
    assert c[:512] == a[:512]
    assert c[512:600] != a[512:600]
    assert all(3 <= token < 1000 for token in a)


def test_blocks_stay_aligned_when_scaled_down(trace: Path) -> None:
    a, b, c = (request.prompt for request in requests(trace, block_tokens=16))
    assert (len(a), len(b), len(c)) == (40, 32, 18)
    assert a[:32] == b
    assert c[:16] == a[:16]
    assert c[16:] != a[16:18]


@given(tokens=st.integers(1, 200_000), block=st.integers(1, 512))
def test_scaling_keeps_the_number_of_complete_blocks(tokens: int, block: int) -> None:
    scaled = TraceScale(block_tokens=block).prompt_tokens(tokens)
    assert scaled // block == tokens // 512 or (block == 1 and tokens < 512)
    assert 1 <= scaled <= tokens


def test_the_seed_alone_decides_the_tokens(trace: Path) -> None:
    assert requests(trace) == requests(trace)
    assert requests(trace)[0].prompt != requests(trace, seed=2)[0].prompt


def test_time_counts_from_the_first_row_and_the_rate_scales_it(trace: Path) -> None:
    assert [r.arrival_s for r in requests(trace)] == [0, 0, 3.5]
    assert [r.arrival_s for r in requests(trace, rate_factor=2)] == [0, 0, 1.75]


def test_every_request_has_an_output_and_an_id_of_its_own(trace: Path) -> None:
    assert [r.output_tokens for r in requests(trace)] == [10, 1, 7]
    assert [r.output_tokens for r in requests(trace, output_factor=0.1)] == [1, 1, 1]
    assert len({r.id for r in requests(trace)}) == 3


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"timestamp": 0, "output_length": 1}', "input_length is None"),
        ('{"timestamp": 0, "input_length": 0, "output_length": 1}', "input_length is 0"),
        ('{"timestamp": 0, "input_length": true, "output_length": 1}', "input_length is True"),
        ('{"timestamp": 9e3, "input_length": 5, "output_length": 1, "hash_ids": "ab"}', "hash_ids"),
        ('{"timestamp": 9e3, "input_length": 513, "output_length": 1, "hash_ids": [1]}', "one per 512: 2"),
        ('{"timestamp": NaN, "input_length": 5, "output_length": 1}', "timestamp is nan"),
        ('{"timestamp": 500, "input_length": 5, "output_length": 1}', "sort the trace by time"),
    ],
)
def test_a_bad_line_is_named_after_the_good_ones_were_read(trace: Path, line: str, complaint: str) -> None:
    trace.write_text(trace.read_text() + line + "\n")
    rows = read_mooncake(trace)
    assert len(list(islice(rows, 3))) == 3
    with pytest.raises(TraceError) as caught:
        next(rows)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(f"{trace}:4: ")


def test_azure_rows_share_nothing(tmp_path: Path) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(f"{AZURE}2023-11-16 23:59:59.6805900,374,44\n2023-11-17 00:00:00.6805900,374,9\n")
    rows = list(read_azure(file))
    assert [row.arrival_s for row in rows] == [0, pytest.approx(1.0)]
    one, other = trace_requests(rows, seed=1, vocabulary=300)
    assert (len(one.prompt), one.output_tokens, other.output_tokens) == (374, 44, 9)
    assert one.prompt[:16] != other.prompt[:16]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("yesterday,1,1", "'yesterday' is no date"),
        ("2023-11-16 18:15:46,-4,1", "ContextTokens is '-4'"),
        ("2023-11-16 18:15:46,4", "GeneratedTokens is None"),
    ],
)
def test_a_bad_azure_line_is_named(tmp_path: Path, row: str, complaint: str) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(f"{AZURE}2023-11-16 18:15:46,1,1\n{row}\n")
    with pytest.raises(TraceError, match=f"azure.csv:3: .*{complaint}"):
        list(read_azure(file))


@pytest.mark.parametrize("reader", TRACES.values())
def test_a_missing_or_binary_file_is_said_so(tmp_path: Path, reader: object) -> None:
    assert callable(reader)
    with pytest.raises(TraceError, match="cannot read the trace: No such file"):
        list(reader(tmp_path / "none"))
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(TraceError, match="not text"):
        list(reader(tmp_path / "packed"))


def test_scales_that_leave_nothing_are_refused() -> None:
    for wrong in ({"block_tokens": 0}, {"rate_factor": 0.0}, {"output_factor": -1.0}):
        with pytest.raises(TraceError):
            TraceScale(**wrong)  # type: ignore[arg-type]
    row = TraceRow(line=1, arrival_s=0, prompt_tokens=1, output_tokens=1)
    with pytest.raises(TraceError, match="no choice of tokens"):
        next(trace_requests([row], seed=0, vocabulary=4, first_token=3))


@pytest.mark.parametrize(
    ("name", "file", "rows", "mean_tokens"),
    [
        ("mooncake", "mooncake_conversation_trace.jsonl", 12031, 12035),
        ("azure", "azure_2023_conv.csv", 19366, 1155),
    ],
)
def test_the_public_traces_read_as_published(name: str, file: str, rows: int, mean_tokens: int) -> None:
    if not (DATA / file).exists():
        pytest.skip(f"{file} is not at {DATA}")
    lengths = [row.prompt_tokens for row in TRACES[name](DATA / file)]
    assert len(lengths) == rows
    assert sum(lengths) / rows == pytest.approx(mean_tokens, abs=1)
