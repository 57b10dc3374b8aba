"""Sessions: seeded, bounded, and sharing just what they are said to share."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prfaas_lab.spec.scenario import Workload
from prfaas_lab.workload import Request, generate
from prfaas_lab.workload.sessions import size

CHAT = {
    "kind": "chat",
    "turns": 6,
    "least_turns": 2,
    "think": "1s",
    "system": {"kind": "fixed", "tokens": 40},
}
TREE = {"kind": "tree", "depth": 4, "branches": 3}


def first_requests(sessions: dict[str, Any], seed: int = 1, requests: int | None = 60) -> list[Request]:
    workload = Workload.model_validate(
        {
            "requests": requests,
            "arrivals": {"kind": "poisson", "rate": 5},
            "prompt": {"kind": "lognormal", "mu": 3.0, "sigma": 0.5, "min": 8, "max": 90},
            "output": {"kind": "lognormal", "mu": 2.0, "sigma": 0.5, "min": 2, "max": 30},
            "sessions": sessions,
        }
    )
    return list(generate(workload, seed=seed, vocab_size=512, duration_s=20.0))


def contexts(request: Request) -> list[Request]:
    """Every request of a session, with answers made up."""
    found = [request]
    for asked in found:
        answer = [1] * asked.output_tokens
        found.extend(follow_up.after(asked, answer) for follow_up in asked.follow_ups)
    return found


@given(seed=st.integers(0, 2**63), sessions=st.sampled_from([CHAT, TREE]))
@settings(max_examples=20)
def test_the_same_seed_gives_the_same_sessions(seed: int, sessions: dict[str, Any]) -> None:
    assert first_requests(sessions, seed) == first_requests(sessions, seed)


@pytest.mark.parametrize("sessions", [CHAT, TREE])
def test_the_number_of_requests_counts_those_that_follow(sessions: dict[str, Any]) -> None:
    found = [request for first in first_requests(sessions, requests=57) for request in contexts(first)]
    assert len(found) == len({request.id for request in found}) == 57
    assert sum(size(first) for first in first_requests(sessions, requests=57)) == 57


def test_sessions_share_the_system_prompt_and_no_more() -> None:
    spec = {**CHAT, "systems": 3}
    prompts = [request.prompt for request in first_requests(spec, requests=None)]
    assert len({prompt[:40] for prompt in prompts}) == 3
    assert len({prompt[:48] for prompt in prompts}) == len(prompts)


def test_a_conversation_has_as_many_turns_as_it_may() -> None:
    turns = {size(first) for first in first_requests(CHAT, requests=None)}
    assert turns == {2, 3, 4, 5, 6}
    assert {size(first) for first in first_requests({"kind": "chat", "turns": 4}, requests=None)} == {4}


def test_no_context_grows_beyond_its_bound_except_an_opening_that_is_longer() -> None:
    for first in first_requests({**CHAT, "turns": 50, "least_turns": 50, "context": 200}, requests=None):
        later = contexts(first)[1:]
        assert all(request.prompt_tokens + request.output_tokens <= 200 for request in later)


def test_all_branches_of_a_tree_continue_from_the_same_answer() -> None:
    first = first_requests(TREE, requests=None)[0]
    assert size(first) == 1 + 3 + 9 + 27
    children = [follow_up.after(first, [9] * first.output_tokens).prompt for follow_up in first.follow_ups]
    shared = len(list(takewhile(lambda tokens: len(set(tokens)) == 1, zip(*children, strict=False))))
    assert first.prompt_tokens + first.output_tokens <= shared < first.prompt_tokens + first.output_tokens + 4


@pytest.mark.parametrize(
    "wrong", [{"kind": "chat", "turns": 2, "least_turns": 3}, {"kind": "tree", "depth": 12, "branches": 16}]
)
def test_a_workload_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        first_requests(wrong)
