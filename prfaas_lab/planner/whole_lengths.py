"""How long a workload's prompts are as a whole, and its answers: what a plan is made for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from statistics import fmean

from prfaas_lab.planner import lengths
from prfaas_lab.spec.scenario import Scenario
from prfaas_lab.workload.generate import generate
from prfaas_lab.workload.request import FollowUp, Request

_SAMPLED = 500
"""Sessions, or requests of a trace, that stand for all."""


def whole_lengths(scenario: Scenario) -> tuple[lengths.LengthLaw, float]:
    """The law of whole prompts, and the mean answer. Those of sessions and traces are what their first
    requests have: no cache is reckoned with, so that a policy is given the same roles with one or without.
    Raises LabError where nothing arrives, or a trace cannot be read."""
    workload = scenario.workload
    if not workload.sessions and workload.prompt is not None and workload.output is not None:
        return lengths.law_of(workload.prompt), lengths.mean(lengths.law_of(workload.output))
    requests = generate(
        workload, seed=scenario.seed, vocab_size=None, duration_s=scenario.duration, contents=False
    )
    seen = [each for first in islice(requests, _SAMPLED) for each in _session(first)]
    return lengths.Discrete.of(prompt for prompt, _ in seen), fmean(output for _, output in seen)


def _session(first: Request) -> Iterator[tuple[int, int]]:
    """Tokens of each prompt and answer of a session."""
    waiting: list[tuple[int, int, tuple[FollowUp, ...]]]
    waiting = [(first.prompt_tokens, first.output_tokens, first.follow_ups)]
    while waiting:
        prompt_tokens, output_tokens, follow_ups = waiting.pop()
        yield prompt_tokens, output_tokens
        said = prompt_tokens + output_tokens
        waiting += [(said + len(each.tokens), each.output_tokens, each.follow_ups) for each in follow_ups]
