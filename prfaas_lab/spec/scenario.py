"""A scenario: what runs on a topology, as frozen values."""

from __future__ import annotations

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

from prfaas_lab.spec.network import (
    Bandwidth,
    CrossTraffic,
    CsvTrace,
    Event,
    Fluctuation,
    MahimahiTrace,
    Markov,
    OrnsteinUhlenbeck,
    Sine,
    Square,
    Steps,
)
from prfaas_lab.spec.quantities import Count, Duration, Fraction, Number, Size, Tokens
from prfaas_lab.spec.topology import Misfit, Name, Spec, Topology
from prfaas_lab.spec.workload import (
    Arrivals,
    ClosedLoop,
    Empirical,
    Fixed,
    Gamma,
    Lengths,
    LogNormal,
    OnOff,
    Poisson,
    TraceFile,
    Uniform,
    Workload,
)

__all__ = [
    "Arrivals", "Bandwidth", "ClosedLoop", "CrossTraffic", "CsvTrace", "Empirical", "EngineSettings", "Event",
    "Fixed", "Fluctuation", "Gamma", "Lengths", "LogNormal", "MahimahiTrace", "Markov", "Model", "OnOff",
    "OrnsteinUhlenbeck", "Poisson", "Policy", "Resolved", "Scenario", "Sine", "Square", "Steps", "Tolerance",
    "TraceFile", "TransportSettings", "Uniform", "Verify", "Workload",
]  # fmt: skip


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

    executor: Literal["torch", "paced"] = Field(
        default="torch",
        description="torch: the real (small) model; paced: the hardware profile of each datacenter's "
        "`hardware`, time and bytes without a model",
    )
    chunk: Tokens = Field(default=128, gt=0, description="prefill chunk, a multiple of 64")
    max_batch: Count = Field(
        default=8, gt=0, le=1024, description="sequences decoded together (paced: the profile's bs_max)"
    )
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
    compression: Literal["none", "zstd", "int8"] = Field(
        default="none",
        description="zstd: lossless; int8: attention's keys and values quantised, states exact, so that "
        "outputs may differ (the summary tells how many agree)",
    )

    @property
    def lossy(self) -> bool:
        """Whether what arrives may differ from what was sent."""
        return self.compression == "int8"


class Policy(Named):
    """Where prefill runs. Options that a policy does not know are refused when it is looked up."""

    name: str = Field(
        default="threshold", description="prfaas, threshold, balanced, local-only, ..., or module:function"
    )
    threshold: Tokens = Field(default=512, description="uncached tokens above which prefill is offloaded")
    share: Fraction | None = Field(default=None, description="of all requests, offloaded (balanced)")


class SchedulerSettings(Spec):
    """The dual-timescale scheduler of the `prfaas` policy. Durations are those of the real world."""

    short: Duration = Field(default=1.0, gt=0, description="period of the short-term loop")
    band: Duration = Field(default=2.0, gt=0, description="difference in waiting that moves the threshold")
    long: Duration = Field(default=60.0, gt=0, description="period of the long-term loop")
    window: Duration = Field(default=120.0, gt=0, description="what the long-term loop looks back on")
    margin: Fraction = Field(default=0.05, description="gain in throughput that a conversion must exceed")
    conversion: Duration = Field(
        default=10.0, gt=0, description="an instance's absence after it has drained, to change its role"
    )
    convert: bool = Field(default=True, description="whether local instances may change their role")


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
    shaper_wait: Fraction = Field(default=0.02, description="share of the time the shaper waits for a CPU")
    engine_wait: Fraction = Field(default=0.25, description="share of the time an engine waits for a CPU")


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
    scheduler: SchedulerSettings = Field(
        default=SchedulerSettings(), description="how policy prfaas adapts while it runs"
    )
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
    cache: Literal["on", "off"] = Field(
        default="on", description="off: no prefix cache, whatever the topology says (to compare with)"
    )
    warm_up: Duration = Field(
        default=0.0, ge=0, description="left out of the steady-state figures, as is what drains"
    )
    verify: Verify = Field(default=Verify(), description="how many outputs are checked")
    tolerance: Tolerance = Field(default=Tolerance(), description="when a run is still believed")

    @model_validator(mode="after")
    def _only_real_kvcache_is_compressed(self) -> Scenario:
        if self.engine.executor == "paced" and self.transport.compression != "none":
            text = (
                "would compress what paced engines send, noise that only has the size of KVCache"
                " (write none, or engine.executor: torch)"
            )
            raise Misfit((["transport", "compression"], text))
        return self


class Resolved(Spec):
    """A scenario with its topology read (`scenario.topology` is the same value) and its paths
    settled: all that a run needs."""

    scenario: Scenario
    topology: Topology
    source: str = Field(description="the file it was read from")
