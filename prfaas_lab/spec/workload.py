"""What a scenario asks for: when requests arrive, and how long they are."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from prfaas_lab.spec.quantities import Count, Duration, Frequency, Number, Tokens
from prfaas_lab.spec.topology import Misfit, Spec

# -- lengths -----------------------------------------------------------------------------------


class LogNormal(Spec):
    """Log-normal token counts, redrawn until they fall within [min, max] (the paper, 4.1)."""

    kind: Literal["lognormal"]
    mu: Number = Field(description="mean of ln(tokens)")
    sigma: Number = Field(gt=0, le=10, description="standard deviation of ln(tokens)")
    min: Tokens = Field(default=1, description="shortest")
    max: Tokens = Field(default=131072, description="longest")

    @model_validator(mode="after")
    def _ordered(self) -> LogNormal:
        if not 0 < self.min < self.max:
            text = f"min {self.min} and max {self.max} leave no range (need 0 < min < max)"
            raise Misfit((["min"], text))
        middle = math.exp(self.mu) if self.mu < 700 else math.inf
        nearest = math.log(min(max(middle, self.min), self.max))
        if abs(nearest - self.mu) > 8 * self.sigma:
            text = f"is the mean of ln(tokens): {self.min} to {self.max} is out of reach (for 400 write 6.0)"
            raise Misfit((["mu"], text))
        return self


class Fixed(Spec):
    """Every request has the same token count."""

    kind: Literal["fixed"]
    tokens: Tokens = Field(gt=0, description="tokens of every one")


class Empirical(Spec):
    """Token counts drawn from a list, optionally weighted."""

    kind: Literal["empirical"]
    tokens: tuple[Annotated[Tokens, Field(gt=0)], ...] = Field(min_length=1, description="the counts")
    weights: tuple[Annotated[Number, Field(ge=0)], ...] | None = Field(
        default=None, description="how likely each is, in any scale; unset: all alike"
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> Empirical:
        if self.weights is not None and len(self.weights) != len(self.tokens):
            text = f"{len(self.weights)} weights for {len(self.tokens)} token counts (give one each)"
            raise Misfit((["weights"], text))
        if self.weights is not None and sum(self.weights) <= 0:
            raise Misfit((["weights"], "are all zero (give at least one more than 0)"))
        return self


Lengths = Annotated[LogNormal | Fixed | Empirical, Field(discriminator="kind")]

# -- arrivals ----------------------------------------------------------------------------------


class Gamma(Spec):
    """Gamma-distributed gaps: burstiness 1 is Poisson, below 1 burstier (vLLM's definition)."""

    kind: Literal["gamma"]
    rate: Frequency = Field(gt=0, description="mean arrival rate")
    burstiness: Number = Field(default=1.0, gt=0, description="the gamma's shape")


class Poisson(Spec):
    """Independent arrivals at a mean rate."""

    kind: Literal["poisson"]
    rate: Frequency = Field(gt=0, description="mean arrival rate")


class OnOff(Spec):
    """Bursts: gamma arrivals at `rate` for `on`, at `off_rate` for `off`, and again."""

    kind: Literal["onoff"]
    rate: Frequency = Field(gt=0, description="arrival rate within a burst")
    on: Duration = Field(gt=0, description="length of a burst; the first starts at once")
    off: Duration = Field(gt=0, description="time between bursts")
    off_rate: Frequency = Field(default=0.0, description="arrival rate between bursts")
    burstiness: Number = Field(default=1.0, gt=0, description="the gamma's shape")


class ClosedLoop(Spec):
    """A fixed number of clients, each sending its next request when its last has ended."""

    kind: Literal["closed"]
    clients: Count = Field(gt=0, le=10000, description="requests in flight at most")
    think: Duration = Field(default=0.0, description="pause of a client between two requests")


class Uniform(Spec):
    """Evenly spaced arrivals."""

    kind: Literal["uniform"]
    rate: Frequency = Field(gt=0, description="mean arrival rate")


class TraceFile(Spec):
    """Requests as a public trace has them: when they came, how long they were, and which 512-token blocks
    they shared. Scaled down so that a small model can run it."""

    kind: Literal["trace"]
    format: Literal["mooncake", "azure"] = Field(description="jsonl with hash_ids, or csv of lengths")
    file: Annotated[str, Field(min_length=1)] = Field(description="a path relative to this file")
    block: Tokens = Field(default=512, gt=0, description="tokens that stand for each 512 of a prompt")
    output_factor: Number = Field(default=1.0, gt=0, description="outputs become this many times as long")
    rate_factor: Number = Field(default=1.0, gt=0, description="2 halves every gap between arrivals")


Arrivals = Annotated[Poisson | Gamma | OnOff | Uniform | ClosedLoop | TraceFile, Field(discriminator="kind")]


# -- what requests share ------------------------------------------------------------------------


class _Shared(Spec):
    """What sessions of any kind have: a system prompt that many share, pauses, and an end."""

    system: Lengths | None = Field(default=None, description="tokens of a system prompt; unset: none")
    systems: Count = Field(default=1, gt=0, le=100_000, description="different system prompts, drawn alike")
    think: Duration = Field(default=0.0, description="mean pause after an answer (exponential)")
    context: Tokens = Field(default=131072, gt=0, description="a session ends before it grows beyond this")


class Chat(_Shared):
    """Arrivals are conversations. Each turn's prompt is all that was said, answers included, and more."""

    kind: Literal["chat"]
    turns: Count = Field(gt=0, le=200, description="requests of a conversation, at most")
    least_turns: Count | None = Field(default=None, gt=0, description="at least; unset: always `turns`")

    @model_validator(mode="after")
    def _ordered(self) -> Chat:
        if self.least_turns is not None and self.least_turns > self.turns:
            raise Misfit((["least_turns"], f"{self.least_turns} are more than turns, {self.turns}"))
        return self


class AgentTree(_Shared):
    """Arrivals are tasks. Each answer is followed by `branches` requests that all continue from it."""

    kind: Literal["tree"]
    depth: Count = Field(gt=0, le=12, description="requests from the root to a leaf")
    branches: Count = Field(default=2, gt=0, le=16, description="requests that continue from each answer")

    @model_validator(mode="after")
    def _bounded(self) -> AgentTree:
        if (size := sum(self.branches**level for level in range(self.depth))) > 10_000:
            raise Misfit((["depth"], f"makes {size} requests of a task (lower depth or branches)"))
        return self


Sessions = Annotated[Chat | AgentTree, Field(discriminator="kind")]


class Shift(Spec):
    """The mix of lengths changes for good, from a time on."""

    at: Duration = Field(description="requests that arrive from then on have these lengths")
    prompt: Lengths = Field(description="tokens of a prompt")
    output: Lengths = Field(description="tokens of an answer")


class Workload(Spec):
    """What is asked: when requests arrive, how long their prompts and outputs are."""

    requests: Count | None = Field(default=None, gt=0, le=10_000_000, description="stop after this many")
    arrivals: Arrivals = Field(description="when requests arrive (with sessions: when each begins)")
    prompt: Lengths | None = Field(
        default=None, description="tokens of a prompt (with sessions: of what each request adds)"
    )
    output: Lengths | None = Field(default=None, description="tokens of an answer")
    sessions: Sessions | None = Field(
        default=None, description="requests that continue one another; unset: no two share anything"
    )

    shift: Shift | None = Field(
        default=None, description="lengths from a time on (not of sessions or a closed loop)"
    )

    @model_validator(mode="after")
    def _a_shift_needs_arrivals(self) -> Workload:
        if self.shift and (self.sessions or isinstance(self.arrivals, TraceFile | ClosedLoop)):
            raise Misfit((["shift"], "needs arrivals at times of their own (poisson, gamma, onoff, uniform)"))
        return self

    @model_validator(mode="after")
    def _lengths_come_from_one_place(self) -> Workload:
        given = {"prompt": self.prompt, "output": self.output, "sessions": self.sessions}
        if isinstance(self.arrivals, TraceFile):
            surplus = [name for name, value in given.items() if value is not None]
            problems = [([name], "is what the trace says (drop it)") for name in surplus]
        else:
            missing = [name for name in ("prompt", "output") if given[name] is None]
            problems = [([name], "is missing (see `prfaas-lab schema scenario`)") for name in missing]
        if problems:
            raise Misfit(*problems)
        return self

    @property
    def lengths(self) -> tuple[Lengths, Lengths]:
        """The laws of prompts and of answers. Only a trace has none: do not ask it."""
        assert self.prompt is not None, "a trace has no law of lengths"
        assert self.output is not None
        return self.prompt, self.output
