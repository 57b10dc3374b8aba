"""One request of a workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct
from msgspec.structs import replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and which tokens end the output before its length does.

    Temperature 0 is greedy, whatever the rest says. The same seed draws the same tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


GREEDY = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp:
    """What is asked once a request was answered: its prompt and answer, and `tokens` more. Sent
    `think_s` after the answer."""

    id: str
    think_s: float
    tokens: tuple[int, ...]
    output_tokens: int
    follow_ups: tuple[FollowUp, ...] = ()

    def after(self, request: Request, answer: Sequence[int]) -> Request:
        """The request, now that the answer to the one before is known."""
        return replace(
            request,
            id=self.id,
            arrival_s=None,
            prompt=(*request.prompt, *answer, *self.tokens),
            output_tokens=self.output_tokens,
            follow_ups=self.follow_ups,
        )


class Request(Struct, frozen=True, kw_only=True):
    """A prompt to be served. `arrival_s` counts from the workload's start; in a closed loop it is
    None and the driver sends when a client is free. `output_tokens` is the most it may get."""

    id: str
    arrival_s: float | None
    prompt: tuple[int, ...]
    output_tokens: int
    sampling: Sampling = GREEDY
    length: int | None = None
    """Tokens of a prompt whose ids nobody reads (paced engines): `prompt` is then empty."""
    follow_ups: tuple[FollowUp, ...] = ()
    """What its session goes on with, all at once or (a chat has one) one after another."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt) if self.length is None else self.length
