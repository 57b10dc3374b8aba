"""What a policy sees, what it follows, and what it answers: frozen values, no clock, no sockets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from msgspec import Struct

from prfaas_lab.model.profile import Profile
from prfaas_lab.workload.request import Request

Role = Literal["prefill", "decode"]
Rank = tuple[float, float, int, str]
"""What engines are ordered by; the name decides between equals, so that no two rank alike."""


class EngineView(Struct, frozen=True, kw_only=True, gc=False):
    """One engine as the controller knows it now.

    `queued_tokens` and `queued_s` are the prompts still to compute, the one under way included, in tokens
    and (where profiles are known) seconds. `prefix_tokens`: how much of this request's prompt it can
    resume from (prefill), or need not be sent (decode).
    """

    name: str
    datacenter: str
    role: Role
    queued: int = 0
    running: int = 0
    queued_tokens: int = 0
    queued_s: float = 0.0
    capacity: int = 1
    alive: bool = True
    prefix_tokens: int = 0
    prefill_s_per_token: float | None = None
    """As measured so far on uncached tokens; None before its first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatacenterView:
    """One datacenter: its role, and how much of this request's prompt its caches hold."""

    name: str
    role: Literal["prfaas", "local"]
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PathView:
    """The network way from one datacenter to another. `rate_bps` is None when unshaped.

    `rate_bps` and `up` are as configured; the rest is what the senders' connections tell.
    """

    source: str
    destination: str
    rate_bps: float | None
    rtt_s: float
    up: bool = True
    utilization: float = 0.0
    """Share of the rate that was in use over the last second."""
    throughput_bps: float = 0.0
    """The same in bit/s."""
    available_bps: float | None = None
    """What it was seen to give when asked for all it has; None until it was asked."""
    congested: bool = False
    """It is full, and it shows: a standing queue, or loss."""
    backlogged: bool = False
    """More is waiting for it now than it takes: `available_bps` is of now."""


def prefill_rank(engine: EngineView) -> Rank:
    """The engine that has least to compute until a prompt whose beginning it may hold is done is first:
    by seconds where profiles are known, by tokens otherwise."""
    return (
        engine.queued_s,
        engine.queued_tokens - engine.prefix_tokens,
        engine.queued + engine.running,
        engine.name,
    )


def decode_rank(engine: EngineView) -> Rank:
    """The emptiest engine is first; of equals, the one that need be sent least."""
    return (engine.running + engine.queued) / engine.capacity, -engine.prefix_tokens, 0, engine.name


class Ranks(Protocol):
    """The same engines in order of their ranks, for deployments too large to go through at each request."""

    def idlest(self, role: Role, datacenter: str) -> EngineView | None:
        """The live engine of a datacenter that ranks first in its role."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheView:
    """What a cached prefix weighs on the wire: its tokens, and the one state to resume from."""

    token_bytes: int
    state_bytes: int
    futile: frozenset[tuple[str, str]] = frozenset()
    """(source, destination) of engines between which a beginning of this prompt was lately copied in vain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a prompt takes and makes where, by the hardware's profiles, in seconds and bytes of the run."""

    profiles: Mapping[str, Profile]
    """Of each datacenter."""
    scale: float = 1.0
    time_scale: float = 1.0

    def prefill_s(self, datacenter: str, tokens: int, cached_tokens: int = 0) -> float:
        """Of one engine there, and a prompt of which so much is cached."""
        return self.time_scale * self.profiles[datacenter].prefill_s(tokens, cached_tokens)

    def kv_bytes(self, datacenter: str, tokens: int) -> float:
        """Of the KVCache that crosses from there."""
        return self.scale * self.profiles[datacenter].kv_bytes(tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The deployment at the moment of a decision. `cache` is None when prefixes are not kept, `costs`
    without hardware profiles."""

    datacenters: tuple[DatacenterView, ...]
    engines: Sequence[EngineView]
    paths: tuple[PathView, ...] = ()
    cache: CacheView | None = None
    costs: Costs | None = None
    committed_bytes: Mapping[tuple[str, str], int] = field(default_factory=dict, compare=False, repr=False)
    """KVCache still to be received over each way (source, destination), of requests placed before."""
    wire_share: float = 1.0
    """What of it goes on the wire: less than all where it is compressed."""
    ranks: Ranks | None = field(default=None, compare=False, repr=False)
    """Says nothing that `engines` does not; None where ranks depend on the request (prefix caches)."""

    def idlest(self, role: Role, datacenter: str) -> EngineView | None:
        """The live engine of a datacenter that ranks first in its role (`prefill_rank`, `decode_rank`)."""
        if self.ranks is not None:
            return self.ranks.idlest(role, datacenter)
        rank = prefill_rank if role == "prefill" else decode_rank
        alive = (e for e in self.engines if e.role == role and e.alive and e.datacenter == datacenter)
        return min(alive, key=rank, default=None)

    def ahead_bytes(self, path: PathView) -> float:
        """What has still to cross a path for requests placed before, as it goes on the wire."""
        return self.wire_share * self.committed_bytes.get((path.source, path.destination), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the slow loop decided, valid until it swaps in another.

    `offload_share` is for policies that are blind to length.
    """

    threshold_tokens: int | None = None
    offload_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a request is prefilled and decoded, and the reason in words."""

    prefill: str
    decode: str
    offloaded: bool
    uncached_tokens: int
    reason: str = field(compare=False)
    copy_from: str | None = None
    """The engine whose cached prefix is to be copied to `prefill` first."""


Route = Callable[[Request, View, Plan], Placement]
"""A policy: pure, total, and the same answer for the same arguments."""
