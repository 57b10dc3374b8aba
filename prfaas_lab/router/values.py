"""What a policy sees, what it follows, and what it answers: frozen values, no clock, no sockets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from prfaas_lab.workload.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """One engine as the controller knows it now. `prefix_tokens`: how much of this request's prompt it
    can resume from (prefill), or need not be sent (decode)."""

    name: str
    datacenter: str
    role: Literal["prefill", "decode"]
    queued: int = 0
    running: int = 0
    queued_tokens: int = 0
    capacity: int = 1
    alive: bool = True
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DatacenterView:
    """One datacenter: its role, and how much of this request's prompt its caches hold."""

    name: str
    role: Literal["prfaas", "local"]
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PathView:
    """The network way from one datacenter to another. `rate_bps` is None when unshaped."""

    source: str
    destination: str
    rate_bps: float | None
    rtt_s: float
    utilization: float = 0.0
    up: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The deployment at the moment of a decision."""

    datacenters: tuple[DatacenterView, ...]
    engines: tuple[EngineView, ...]
    paths: tuple[PathView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the slow loop decided, valid until it swaps in another."""

    threshold_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a request is prefilled and decoded, and the reason in words."""

    prefill: str
    decode: str
    offloaded: bool
    uncached_tokens: int
    reason: str = field(compare=False)


Route = Callable[[Request, View, Plan], Placement]
"""A policy: pure, total, and the same answer for the same arguments."""
