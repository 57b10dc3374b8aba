"""A trace as a scenario's workload: its requests, scaled, and nothing beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prfaas_lab.spec.scenario import Workload
from prfaas_lab.workload import Request, generate


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = [
        {"timestamp": 1000 * n, "input_length": 1600, "output_length": 40, "hash_ids": [0, 1, n + 2, n + 100]}
        for n in range(20)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def traced(path: Path, requests: int | None = None, **arrivals: Any) -> Workload:
    spec = {"kind": "trace", "format": "mooncake", "file": str(path), "block": 64, **arrivals}
    return Workload.model_validate({"arrivals": spec, "requests": requests})


def requests(of: Workload, **options: Any) -> list[Request]:
    return list(generate(of, **{"seed": 1, "vocab_size": 384, "duration_s": 100.0, **options}))


def test_requests_come_as_in_the_trace_with_its_blocks_scaled(trace: Path) -> None:
    found = requests(traced(trace, rate_factor=2, output_factor=0.25))
    assert [request.arrival_s for request in found] == [n / 2 for n in range(20)]
    assert {(request.prompt_tokens, request.output_tokens) for request in found} == {(200, 10)}
    assert len({request.prompt[:128] for request in found}) == 1
    assert len({request.prompt[:192] for request in found}) == 20


def test_the_same_seed_gives_the_same_requests_and_they_end_where_they_should(trace: Path) -> None:
    assert requests(traced(trace)) == requests(traced(trace))
    assert requests(traced(trace)) != requests(traced(trace), seed=2)
    assert len(requests(traced(trace, requests=5))) == 5
    assert len(requests(traced(trace), duration_s=7.5, time_scale=2.0)) == 8


@pytest.mark.parametrize("surplus", ["prompt", "output", "sessions"])
def test_what_a_trace_says_is_not_said_twice(trace: Path, surplus: str) -> None:
    value = {"kind": "chat", "turns": 2} if surplus == "sessions" else {"kind": "fixed", "tokens": 5}
    with pytest.raises(ValidationError, match="what the trace says"):
        Workload.model_validate({**traced(trace).model_dump(exclude_none=True), surplus: value})


def test_without_a_trace_lengths_are_asked_for() -> None:
    with pytest.raises(ValidationError, match="is missing"):
        Workload.model_validate({"arrivals": {"kind": "poisson", "rate": 1}})
