"""A scenario: what runs on a topology, as frozen values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from prfaas_lab.spec.quantities import Duration, Fraction, Frequency, Rate, Size, Tokens
from prfaas_lab.spec.topology import Impairment, Name, Spec, Topology

# -- lengths -----------------------------------------------------------------------------------


class LogNormal(Spec):
    """Log-normal token counts, redrawn until they fall within [min, max] (the paper, 4.1)."""

    kind: Literal["lognormal"]
    mu: float = Field(description="mean of ln(tokens)")
    sigma: float = Field(gt=0, description="standard deviation of ln(tokens)")
    min: Tokens = 1
    max: Tokens = 131072

    @model_validator(mode="after")
    def _ordered(self) -> LogNormal:
        if not 0 < self.min < self.max:
            raise ValueError(f"min {self.min} and max {self.max} leave no range (need 0 < min < max)")
        return self


class Fixed(Spec):
    """Every request has the same token count."""

    kind: Literal["fixed"]
    tokens: Tokens = Field(gt=0)


class Empirical(Spec):
    """Token counts drawn from a list, optionally weighted."""

    kind: Literal["empirical"]
    tokens: tuple[Tokens, ...] = Field(min_length=1)
    weights: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _weights_fit(self) -> Empirical:
        if self.weights is not None and len(self.weights) != len(self.tokens):
            raise ValueError(f"{len(self.weights)} weights for {len(self.tokens)} token counts (give one each)")
        if self.weights is not None and (min(self.weights) < 0 or sum(self.weights) <= 0):
            raise ValueError("weights must not be negative, nor all zero (give each at least 0)")
        return self


Lengths = Annotated[LogNormal | Fixed | Empirical, Field(discriminator="kind")]

# -- arrivals ----------------------------------------------------------------------------------


class Gamma(Spec):
    """Gamma-distributed gaps: burstiness 1 is Poisson, below 1 burstier (vLLM's definition)."""

    kind: Literal["gamma"]
    rate: Frequency = Field(gt=0)
    burstiness: float = Field(default=1.0, gt=0, description="the gamma's shape")


class Poisson(Spec):
    """Independent arrivals at a mean rate."""

    kind: Literal["poisson"]
    rate: Frequency = Field(gt=0)


class OnOff(Spec):
    """Bursts: gamma arrivals at `rate` for `on`, at `off_rate` for `off`, and again."""

    kind: Literal["onoff"]
    rate: Frequency = Field(gt=0, description="arrival rate within a burst")
    on: Duration = Field(gt=0)
    off: Duration = Field(gt=0)
    off_rate: Frequency = Field(default=0.0, description="arrival rate between bursts")
    burstiness: float = Field(default=1.0, gt=0)


class ClosedLoop(Spec):
    """A fixed number of clients, each sending its next request when its last has ended."""

    kind: Literal["closed"]
    clients: int = Field(gt=0, le=10000)
    think: Duration = 0.0


class Uniform(Spec):
    """Evenly spaced arrivals."""

    kind: Literal["uniform"]
    rate: Frequency = Field(gt=0)


Arrivals = Annotated[Poisson | Gamma | OnOff | Uniform | ClosedLoop, Field(discriminator="kind")]


class Workload(Spec):
    """What is asked: when requests arrive, how long their prompts and outputs are."""

    requests: int | None = Field(default=None, gt=0, le=10_000_000, description="stop after this many")
    arrivals: Arrivals
    prompt: Lengths
    output: Lengths


# -- network -----------------------------------------------------------------------------------


class Sine(Spec):
    """A rate that swings around its mean."""

    kind: Literal["sine"]
    mean: Rate
    amplitude: Rate
    period: Duration = Field(gt=0)
    phase: Fraction = 0.0


class Square(Spec):
    """A rate that alternates between two levels: diurnal load, maintenance windows."""

    kind: Literal["square"]
    high: Rate
    low: Rate
    period: Duration = Field(gt=0)
    duty: Fraction = Field(default=0.5, description="share of the period spent high")


class Steps(Spec):
    """A rate that follows a list of (time, rate); the first holds from the start."""

    kind: Literal["steps"]
    steps: tuple[tuple[Duration, Rate], ...] = Field(min_length=1)
    repeat: Duration | None = Field(default=None, description="start over after this long")


class OrnsteinUhlenbeck(Spec):
    """A mean-reverting random rate, clipped to [floor, ceiling]."""

    kind: Literal["ou"]
    mean: Rate
    deviation: Rate = Field(description="stationary standard deviation")
    relaxation: Duration = Field(gt=0, description="time constant of the return to the mean")
    floor: Rate = 0.0
    ceiling: Rate | None = None


class Markov(Spec):
    """A rate that jumps between states, each held for an exponential time."""

    kind: Literal["markov"]
    states: tuple[Rate, ...] = Field(min_length=2)
    hold: Duration = Field(gt=0, description="mean time in a state")


class MahimahiTrace(Spec):
    """A mahimahi packet-delivery trace: one millisecond timestamp per 1500-byte slot, looping."""

    kind: Literal["mahimahi"]
    file: str


class CsvTrace(Spec):
    """A CSV of (seconds, bits per second), held between rows, looping after the last."""

    kind: Literal["csv"]
    file: str


Bandwidth = Annotated[
    Sine | Square | Steps | OrnsteinUhlenbeck | Markov | MahimahiTrace | CsvTrace,
    Field(discriminator="kind"),
]


class Fluctuation(Spec):
    """A bandwidth that changes in time, on one direction of a link or on both."""

    link: Name
    source: Name | None = Field(default=None, description="datacenter whose egress varies; unset: both")
    bandwidth: Bandwidth
    every: Duration = Field(default=0.1, gt=0, description="how often the rate is set")


class Event(Spec):
    """Something that happens to the network during the run: at a time, or once a count is reached."""

    at: Duration | None = Field(default=None, description="seconds after the workload starts")
    after_requests: int | None = Field(default=None, gt=0, description="once so many were submitted")
    during_transfer: bool = Field(default=False, description="once bytes are in flight on the link")
    link: Name
    source: Name | None = Field(default=None, description="datacenter whose egress changes; unset: both")
    set: Impairment | None = Field(default=None, description="new values; unset keys stay")
    outage: Duration | None = Field(default=None, description="no bytes pass for this long")
    cross_traffic: Rate | Literal["tcp"] | None = Field(
        default=None, description="competing traffic: UDP at a rate, or greedy TCP"
    )
    lasts: Duration | None = Field(default=None, description="undo `set` or stop the traffic after this long")

    @model_validator(mode="after")
    def _one_trigger_and_one_effect(self) -> Event:
        triggers = [self.at is not None, self.after_requests is not None, self.during_transfer]
        if sum(triggers) != 1:
            raise ValueError("needs one trigger (set at:, after_requests: or during_transfer: true)")
        if sum(effect is not None for effect in (self.set, self.outage, self.cross_traffic)) != 1:
            raise ValueError("needs one effect (set set:, outage: or cross_traffic:)")
        return self


# -- engines, policy, checks -------------------------------------------------------------------


class Model(Spec):
    """Which model runs: one of the shipped tiny ones by `name`, or weights by `path`."""

    name: str | None = Field(default="qwen3-next-tiny", description="a shipped tiny model")
    path: str | None = Field(default=None, description="a local folder or hub id (AutoModelForCausalLM)")
    seed: int = Field(default=1234, ge=0, description="of the weights, for a shipped model")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class EngineSettings(Spec):
    """How the engines work."""

    chunk: Tokens = Field(default=128, gt=0, description="prefill chunk, a multiple of 64")
    max_batch: int = Field(default=8, gt=0, le=1024, description="sequences decoded together")
    max_queue: int = Field(default=1024, gt=0, description="requests an engine lets wait")
    ready_timeout: Duration = Field(default=120.0, gt=0)

    @model_validator(mode="after")
    def _chunk_is_aligned(self) -> EngineSettings:
        if self.chunk % 64:
            raise ValueError(f"chunk {self.chunk} is not a multiple of 64 (write 64, 128 or 256)")
        return self


class TransportSettings(Spec):
    """How KVCache crosses."""

    connections: int | Literal["auto"] = Field(default="auto", description="TCP connections per engine pair")
    timeout: Duration = Field(default=30.0, gt=0, description="without progress, a transfer has failed")
    window: Size = Field(default=64 * 2**20, gt=0, description="bytes a receiver lets be in flight")


class Policy(Spec):
    """Where prefill runs. Options that a policy does not know are refused when it is looked up."""

    name: str = "threshold"
    threshold: Tokens = Field(default=512, description="uncached tokens above which prefill is offloaded")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Verify(Spec):
    """How many requests are checked against one-process greedy generation."""

    share: Fraction = 1.0


class Tolerance(Spec):
    """How far the measured network may lie from its spec before the run is not believed."""

    rate: Fraction = Field(default=0.05, description="goodput below the achievable 95.6 % of nominal")
    rtt: Fraction = Field(default=0.05, description="RTT off by this share ...")
    rtt_slack: Duration = Field(default=0.001, description="... plus this much")
    cpu: Fraction = Field(default=0.95, description="mean CPU use of the machine that is still believed")
    timer_lag: Duration = Field(default=0.02, description="p99 lag of the controller's timers")


class Scenario(Spec):
    """One run: a topology, a workload on it, what the network does meanwhile, and the checks."""

    name: Name
    description: str = ""
    topology: str = Field(description="a topology file, relative to this one")
    model: Model = Model()
    workload: Workload
    policy: Policy = Policy()
    duration: Duration = Field(default=60.0, gt=0, description="arrivals stop after this long; then it drains")
    drain_timeout: Duration = Field(default=120.0, gt=0, description="requests still open then have failed")
    seed: int = Field(default=0, ge=0)
    scale: float = Field(default=1.0, gt=0, le=1, description="shrinks bytes and bandwidth together")
    time_scale: float = Field(default=1.0, gt=0, description="stretches (> 1) or shrinks every duration")
    engine: EngineSettings = EngineSettings()
    transport: TransportSettings = TransportSettings()
    fluctuations: tuple[Fluctuation, ...] = ()
    events: tuple[Event, ...] = ()
    verify: Verify = Verify()
    tolerance: Tolerance = Tolerance()


class Resolved(Spec):
    """A scenario with its topology read and its paths settled: all that a run needs."""

    scenario: Scenario
    topology: Topology
    source: str = Field(description="the file it was read from")
