"""Sessions: requests that continue one another, so that their prompts share prefixes.

A session's first request carries all that may follow it. What a later one says is drawn here; its prompt
exists only when the answer before it does, since that is a part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prfaas_lab.spec.workload import AgentTree, Chat, Sessions, Workload
from prfaas_lab.workload.lengths import LengthDistribution, lengths
from prfaas_lab.workload.prompts import random_prompt
from prfaas_lab.workload.request import FollowUp, Request

if TYPE_CHECKING:
    import numpy as np

Stream = Callable[..., "np.random.Generator"]
"""A generator of random numbers of its own for each key."""


class SessionSource:
    """Makes the sessions of a workload, each from streams of its own: one never changes another.

    `session_streams` is asked with the session's number, `system_streams` with the system prompt's.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        vocab_size: int,
        time_scale: float,
        session_streams: Stream,
        system_streams: Stream,
    ) -> None:
        assert workload.sessions is not None
        self._spec: Sessions = workload.sessions
        self._prompt, self._output = (lengths(law) for law in workload.lengths)
        self._vocab_size, self._time_scale = vocab_size, time_scale
        self._session_streams, self._system_streams = session_streams, system_streams

    def session(self, number: int, arrival_s: float | None, at_most: int | None) -> Request:
        """The first request of a session of `at_most` requests."""
        draw = self._session_streams(number)
        system = self._system(int(draw.integers(self._spec.systems)))
        plan = _Plan(self._spec, f"s{number:05d}", draw, self._prompt, self._output, at_most)
        plan.vocab_size, plan.think_s = self._vocab_size, self._spec.think * self._time_scale
        first = plan.step(len(system), level=0, even_if_long=True)
        assert first is not None, "a session has at least one request"
        return Request(
            id=first.id,
            arrival_s=arrival_s,
            prompt=(*system, *first.tokens),
            output_tokens=first.output_tokens,
            follow_ups=first.follow_ups,
        )

    def _system(self, which: int) -> tuple[int, ...]:
        """The same system prompt for the same number, in every session."""
        if self._spec.system is None:
            return ()
        draw = self._system_streams(which)
        return random_prompt(lengths(self._spec.system).quantile(draw.random()), self._vocab_size, draw)


@dataclass(slots=True)
class _Plan:
    """One session in the making."""

    spec: Sessions
    name: str
    draw: np.random.Generator
    prompt: LengthDistribution
    output: LengthDistribution
    left: int | None
    vocab_size: int = 0
    think_s: float = 0.0
    made: int = 0
    levels: int = 0
    branches: int = 1

    def __post_init__(self) -> None:
        match self.spec:
            case Chat(turns=most, least_turns=least):
                self.levels = int(self.draw.integers(most if least is None else least, most + 1))
            case AgentTree(depth=depth, branches=branches):
                self.levels, self.branches = depth, branches

    def step(self, context_tokens: int, *, level: int, even_if_long: bool = False) -> FollowUp | None:
        """A request after a context of so many tokens, with all that follows it; None when it is over."""
        prompt_tokens = self.prompt.quantile(self.draw.random())
        output_tokens = self.output.quantile(self.draw.random())
        context_tokens += prompt_tokens + output_tokens
        over = level >= self.levels or (self.left is not None and self.made >= self.left)
        if over or (context_tokens > self.spec.context and not even_if_long):
            return None
        number = self.made
        self.made += 1
        tokens = random_prompt(prompt_tokens, self.vocab_size, self.draw)
        think_s = float(self.draw.exponential(self.think_s)) if self.think_s else 0.0
        steps = [self.step(context_tokens, level=level + 1) for _ in range(self.branches)]
        return FollowUp(
            id=f"{self.name}-{number}",
            think_s=think_s,
            tokens=tokens,
            output_tokens=output_tokens,
            follow_ups=tuple(step for step in steps if step is not None),
        )


def size(request: Request) -> int:
    """How many requests there are of a session, the first included."""
    waiting, found = list(request.follow_ups), 1
    while waiting:
        found += 1
        waiting.extend(waiting.pop().follow_ups)
    return found
