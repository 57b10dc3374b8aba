"""What befalls the network during a run: bandwidth that varies, and events."""

from __future__ import annotations

import math
from collections.abc import Set
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from prfaas_lab.spec.quantities import Count, Duration, Flag, Fraction, Rate
from prfaas_lab.spec.topology import Impairment, Misfit, Name, Spec


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
