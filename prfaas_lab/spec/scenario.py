"""A scenario: what runs on a topology, as frozen values."""

from __future__ import annotations

import math
from collections.abc import Set
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

from prfaas_lab.spec.quantities import (
    Count,
    Duration,
    Flag,
    Fraction,
    Frequency,
    Number,
    Rate,
    Size,
    Tokens,
)  # fmt: skip
from prfaas_lab.spec.topology import Impairment, Misfit, Name, Spec, Topology

# -- lengths -----------------------------------------------------------------------------------


class LogNormal(Spec):
    """Log-normal token counts, redrawn until they fall within [min, max] (the paper, 4.1)."""

    kind: Literal["lognormal"]
    mu: Number = Field(description="mean of ln(tokens)")
    sigma: Number = Field(gt=0, description="standard deviation of ln(tokens)")
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


Arrivals = Annotated[Poisson | Gamma | OnOff | Uniform | ClosedLoop, Field(discriminator="kind")]


class Workload(Spec):
    """What is asked: when requests arrive, how long their prompts and outputs are."""

    requests: Count | None = Field(default=None, gt=0, le=10_000_000, description="stop after this many")
    arrivals: Arrivals = Field(description="when requests arrive")
    prompt: Lengths = Field(description="tokens of a prompt")
    output: Lengths = Field(description="tokens of an answer")


# -- network -----------------------------------------------------------------------------------


class Sine(Spec):
    """A rate that swings around its mean."""

    kind: Literal["sine"]
    mean: Rate = Field(description="the middle of the swing")
    amplitude: Rate = Field(description="how far it swings, at most the mean")
    period: Duration = Field(gt=0, description="one full swing")
    phase: Fraction = Field(default=0.0, description="share of the period it starts at")

    @model_validator(mode="after")
    def _stays_positive(self) -> Sine:
        if self.amplitude > self.mean:
            raise Misfit((["amplitude"], "is more than the mean, so the rate would be negative (lower it)"))
        return self


class Square(Spec):
    """A rate that alternates between two levels: diurnal load, maintenance windows."""

    kind: Literal["square"]
    high: Rate = Field(description="first level")
    low: Rate = Field(description="second level")
    period: Duration = Field(gt=0, description="one stay at each level")
    duty: Fraction = Field(default=0.5, description="share of the period spent high")


class Steps(Spec):
    """A rate that follows a list of (time, rate); the first holds from the start."""

    kind: Literal["steps"]
    steps: tuple[tuple[Duration, Rate], ...] = Field(
        min_length=1, description="[time, rate] pairs in order of time"
    )
    repeat: Duration | None = Field(default=None, gt=0, description="start over after this long")

    @field_validator("steps", mode="after")
    @classmethod
    def _in_order(cls, steps: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        times = [at_s for at_s, _ in steps]
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError("the times do not rise (sort the steps; each time once)")
        return steps


class OrnsteinUhlenbeck(Spec):
    """A mean-reverting random rate, clipped to [floor, ceiling]."""

    kind: Literal["ou"]
    mean: Rate = Field(description="the rate it returns to")
    deviation: Rate = Field(description="stationary standard deviation")
    relaxation: Duration = Field(gt=0, description="time constant of the return to the mean")
    floor: Rate = Field(default=0.0, description="never below this")
    ceiling: Rate | None = Field(default=None, description="never above this")

    @model_validator(mode="after")
    def _range_is_ordered(self) -> OrnsteinUhlenbeck:
        ceiling = math.inf if self.ceiling is None else self.ceiling
        if not self.floor <= self.mean <= ceiling:
            raise Misfit((["mean"], "lies outside [floor, ceiling] (widen them, or move the mean)"))
        return self


class Markov(Spec):
    """A rate that jumps between states, each held for an exponential time."""

    kind: Literal["markov"]
    states: tuple[Rate, ...] = Field(min_length=2, description="the rates")
    hold: Duration = Field(gt=0, description="mean time in a state")


class MahimahiTrace(Spec):
    """A mahimahi packet-delivery trace: one millisecond timestamp per 1500-byte slot, looping."""

    kind: Literal["mahimahi"]
    file: Annotated[str, Field(min_length=1)] = Field(description="a path relative to this file")


class CsvTrace(Spec):
    """A CSV of (seconds, bits per second), held between rows, looping after the last."""

    kind: Literal["csv"]
    file: Annotated[str, Field(min_length=1)] = Field(description="a path relative to this file")


Bandwidth = Annotated[
    Sine | Square | Steps | OrnsteinUhlenbeck | Markov | MahimahiTrace | CsvTrace,
    Field(discriminator="kind"),
]


class Fluctuation(Spec):
    """A bandwidth that changes in time, on one direction of a link or on both."""

    link: Name = Field(description="a link of the topology")
    source: Name | None = Field(default=None, description="datacenter whose egress varies; unset: both")
    bandwidth: Bandwidth = Field(description="how the rate moves")
    every: Duration = Field(default=0.1, gt=0, description="how often the rate is set")


def _is_tcp(value: Any) -> str:
    return "<tcp>" if value == "tcp" else "<rate>"


def _rate_or_tcp(value: Any) -> Any:
    if isinstance(value, str) and not any(character.isdigit() for character in value):
        raise ValueError(f"{value[:40]!r} is neither a rate nor tcp (write 10Gbit, or tcp)")
    return value


CrossTraffic = Annotated[
    Annotated[Rate, BeforeValidator(_rate_or_tcp), Tag("<rate>")] | Annotated[Literal["tcp"], Tag("<tcp>")],
    Discriminator(_is_tcp),
]
"""Traffic that competes for a link: UDP at a rate, or greedy TCP."""


class Event(Spec):
    """Something that happens to the network during the run: at a time, or once a count is reached."""

    at: Duration | None = Field(default=None, description="seconds after the workload starts")
    after_requests: Count | None = Field(default=None, gt=0, description="once so many were submitted")
    during_transfer: Flag = Field(default=False, description="once bytes are in flight on the link")
    link: Name = Field(description="a link of the topology")
    source: Name | None = Field(default=None, description="datacenter whose egress changes; unset: both")
    set: Impairment | None = Field(default=None, description="new values; unset keys stay")
    outage: Duration | None = Field(default=None, description="no bytes pass for this long")
    cross_traffic: CrossTraffic | None = Field(
        default=None, description="competing traffic: UDP at a rate, or greedy TCP"
    )
    lasts: Duration | None = Field(default=None, description="undo `set` or stop the traffic after this long")

    @model_validator(mode="after")
    def _one_trigger_and_one_effect(self) -> Event:
        given = {key for key, value in self if value is not None and value is not False}
        _exactly_one("trigger", ("at:", "after_requests:", "during_transfer: true"), given)
        _exactly_one("effect", ("set:", "outage:", "cross_traffic:"), given)
        if self.set is not None and not self.set.model_fields_set:
            raise Misfit((["set"], "changes nothing (give at least one of rate:, delay:, loss:, ...)"))
        if self.outage is not None and self.lasts is not None:
            raise Misfit((["lasts"], "an outage has its own length (drop lasts:)"))
        return self


def _exactly_one(what: str, keys: tuple[str, ...], given: Set[str]) -> None:
    found = [key for key in keys if key.partition(":")[0] in given]
    if not found:
        raise Misfit(((), f"no {what} (set {keys[0]}, {keys[1]} or {keys[2]})"))
    if len(found) > 1:
        raise Misfit(((), f"more than one {what} (keep one of {' and '.join(found)})"))


# -- engines, policy, checks -------------------------------------------------------------------


class Named(Spec):
    """Something with options, that may be written as just its name."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core))
        description = schema.pop("description", "")
        return {"description": description, "anyOf": [{"type": "string"}, schema]}


class Model(Named):
    """Which model runs: one of the shipped tiny ones by `name`, or weights by `path`."""

    name: str | None = Field(default="qwen3-next-tiny", description="a shipped tiny model")
    path: str | None = Field(default=None, description="a local folder or hub id (AutoModelForCausalLM)")
    seed: Count = Field(default=1234, ge=0, description="of the weights, for a shipped model")


class EngineSettings(Spec):
    """How the engines work."""

    chunk: Tokens = Field(default=128, gt=0, description="prefill chunk, a multiple of 64")
    max_batch: Count = Field(default=8, gt=0, le=1024, description="sequences decoded together")
    max_queue: Count = Field(default=1024, gt=0, description="requests an engine lets wait")
    ready_timeout: Duration = Field(default=120.0, gt=0, description="an engine not ready by then failed")

    @field_validator("chunk")
    @classmethod
    def _chunk_is_aligned(cls, chunk: int) -> int:
        if chunk % 64:
            raise ValueError(f"{chunk} is not a multiple of 64 (write 64, 128 or 256)")
        return chunk


def _is_auto(value: Any) -> str:
    return "<auto>" if value == "auto" else "<count>"


def _number_or_auto(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"{value[:40]!r} is neither a whole number nor auto (write 4, or auto)")
    return value


_ConnectionCount = Annotated[Count, BeforeValidator(_number_or_auto), Field(gt=0, le=256)]
Connections = Annotated[
    Annotated[_ConnectionCount, Tag("<count>")] | Annotated[Literal["auto"], Tag("<auto>")],
    Discriminator(_is_auto),
]


class TransportSettings(Spec):
    """How KVCache crosses."""

    connections: Connections = Field(default="auto", description="TCP connections per engine pair")
    timeout: Duration = Field(default=30.0, gt=0, description="without progress, a transfer has failed")
    window: Size = Field(default=64 * 2**20, gt=0, description="bytes a receiver lets be in flight")


class Policy(Named):
    """Where prefill runs. Options that a policy does not know are refused when it is looked up."""

    name: str = Field(default="threshold", description="threshold, local-only, remote-all, ...")
    threshold: Tokens = Field(default=512, description="uncached tokens above which prefill is offloaded")


class Verify(Spec):
    """How many requests are checked against one-process greedy generation."""

    share: Fraction = Field(default=1.0, description="of the requests, picked at random")


class Tolerance(Spec):
    """How far the measured network may lie from its spec before the run is not believed."""

    rate: Fraction = Field(default=0.05, description="goodput below the achievable 95.6 % of nominal")
    rtt: Fraction = Field(default=0.05, description="RTT off by this share ...")
    rtt_slack: Duration = Field(default=0.001, description="... plus this much")
    cpu: Fraction = Field(default=0.95, description="mean CPU use of the machine that is still believed")
    timer_lag: Duration = Field(default=0.02, description="p99 lag of the controller's timers")


def _is_inline(value: Any) -> str:
    return "<inline>" if isinstance(value, dict | Topology) else "<file>"


TopologyOrFile = Annotated[
    Annotated[str, Field(min_length=1), Tag("<file>")] | Annotated[Topology, Tag("<inline>")],
    Discriminator(_is_inline),
]
"""A topology file's path, or a topology written in place (as in a run's resolved scenario.yaml)."""


class Scenario(Spec):
    """One run: a topology, a workload on it, what the network does meanwhile, and the checks."""

    name: Name
    description: str = Field(default="", description="what it shows, in a line or two")
    topology: TopologyOrFile = Field(description="a topology file, relative to this one; or a topology")
    model: Model = Field(default=Model(), description="what the engines run")
    workload: Workload = Field(description="what is asked")
    policy: Policy = Field(default=Policy(), description="where prefill runs")
    duration: Duration = Field(
        default=60.0, gt=0, description="arrivals stop after this long; then it drains"
    )
    drain_timeout: Duration = Field(default=120.0, gt=0, description="requests still open then have failed")
    seed: Count = Field(default=0, ge=0, description="of the workload and the fluctuations")
    scale: Number = Field(default=1.0, gt=0, le=1, description="shrinks bytes and bandwidth together")
    time_scale: Number = Field(
        default=1.0, gt=0, le=1000, description="stretches (> 1) or shrinks every duration"
    )
    engine: EngineSettings = Field(default=EngineSettings(), description="how the engines work")
    transport: TransportSettings = Field(default=TransportSettings(), description="how KVCache crosses")
    fluctuations: tuple[Fluctuation, ...] = Field(default=(), description="bandwidths that vary")
    events: tuple[Event, ...] = Field(default=(), description="what befalls the network")
    verify: Verify = Field(default=Verify(), description="how many outputs are checked")
    tolerance: Tolerance = Field(default=Tolerance(), description="when a run is still believed")


class Resolved(Spec):
    """A scenario with its topology read (`scenario.topology` is the same value) and its paths
    settled: all that a run needs."""

    scenario: Scenario
    topology: Topology
    source: str = Field(description="the file it was read from")
