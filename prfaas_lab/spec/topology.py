"""A topology: datacenters, their engines, and the links between them, as frozen values."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prfaas_lab.spec.quantities import Duration, Fraction, Rate, Size, Tokens

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,23}$", examples=["prfaas-east"])]
"""What a thing is called: lower-case letters, digits and dashes, at most 24, a letter first."""


class Spec(BaseModel):
    """The base of everything read from a file: frozen, and no unknown key is let through."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GilbertElliott(Spec):
    """Bursty loss: a good and a bad state with a loss each (netem's `loss gemodel`)."""

    p: Fraction = Field(description="chance to go from good to bad, per packet")
    r: Fraction = Field(description="chance to go from bad to good, per packet")
    loss_bad: Fraction = Field(default=1.0, description="loss in the bad state (netem's 1-h)")
    loss_good: Fraction = Field(default=0.0, description="loss in the good state (netem's 1-k)")


class Impairment(Spec):
    """One direction of a link. Unset means: as the link says, or perfect."""

    rate: Rate | None = Field(default=None, description="nominal bit rate; unset is unshaped")
    delay: Duration | None = Field(default=None, description="one-way delay")
    jitter: Duration | None = Field(default=None, description="deviation of the delay")
    distribution: Literal["uniform", "normal", "pareto", "paretonormal"] | None = Field(
        default=None, description="shape of the jitter"
    )
    delay_correlation: Fraction | None = Field(
        default=None, description="correlation of consecutive jitters"
    )
    loss: Fraction | GilbertElliott | None = Field(default=None, description="random or Gilbert-Elliott")
    reorder: Fraction | None = Field(default=None, description="share sent at once, overtaking others")
    duplicate: Fraction | None = Field(default=None, description="share sent twice")
    corrupt: Fraction | None = Field(default=None, description="share with one bit flipped")
    queue: Size | None = Field(
        default=None, description="queue limit; derived from rate and delay when unset"
    )


class Link(Impairment):
    """A path between two datacenters. The top keys hold for both directions; `forward` (first to
    second of `between`) and `backward` override them for one."""

    between: tuple[Name, Name]
    forward: Impairment = Impairment()
    backward: Impairment = Impairment()

    def direction(self, source: str) -> Impairment:
        """The impairment met by packets that leave `source` over this link."""
        override = self.forward if source == self.between[0] else self.backward
        common = {key: getattr(self, key) for key in Impairment.model_fields}
        return Impairment(**{**common, **{k: getattr(override, k) for k in override.model_fields_set}})

    @model_validator(mode="after")
    def _ends_differ(self) -> Link:
        if self.between[0] == self.between[1]:
            raise ValueError(f"a link from {self.between[0]!r} to itself (name two datacenters)")
        return self


class Engines(Spec):
    """How many engines of each role a datacenter has."""

    prefill: int = Field(default=0, ge=0, le=2000)
    decode: int = Field(default=0, ge=0, le=2000)


class Datacenter(Spec):
    """One site. `prfaas` sites only prefill, for others; `local` sites prefill and decode (PD)."""

    role: Literal["prfaas", "local"]
    engines: Engines
    hardware: str | None = Field(default=None, description="profile of one engine, for paced engines")
    intra: Impairment = Field(
        default=Impairment(), description="links between an engine and its gateway; unshaped when unset"
    )
    egress: Rate | None = Field(
        default=None, description="cap on everything that leaves this datacenter, over all links"
    )
    cache: Size | None = Field(default=None, description="budget of the prefix cache pool; unset is none")
    snapshot_every: Tokens = Field(default=512, description="tokens between cached state snapshots")

    @model_validator(mode="after")
    def _engines_fit_the_role(self) -> Datacenter:
        count = self.engines.prefill + self.engines.decode
        if count == 0:
            raise ValueError("no engines at all (set engines: {prefill: 1} or more)")
        if self.role == "prfaas" and self.engines.decode:
            raise ValueError("a prfaas datacenter only prefills (drop decode, or use role: local)")
        if self.role == "local" and not self.engines.decode:
            raise ValueError("a local datacenter must decode (set engines: {decode: 1} or more)")
        return self


class Topology(Spec):
    """The world a scenario runs in. Rates, delays and sizes are those of the real world."""

    name: Name
    description: str = ""
    datacenters: dict[Name, Datacenter] = Field(min_length=1, max_length=64)
    links: dict[Name, Link] = Field(default_factory=dict, max_length=256)

    @property
    def prfaas(self) -> tuple[str, ...]:
        """Names of the datacenters that only prefill."""
        return tuple(name for name, dc in self.datacenters.items() if dc.role == "prfaas")

    @property
    def local(self) -> tuple[str, ...]:
        """Names of the datacenters that can serve a request end to end."""
        return tuple(name for name, dc in self.datacenters.items() if dc.role == "local")

    def engine_names(self, datacenter: str) -> dict[str, Literal["prefill", "decode"]]:
        """Name -> role of each engine of a datacenter, in order: `<dc>-p0`, ..., `<dc>-d0`, ..."""
        engines = self.datacenters[datacenter].engines
        names: dict[str, Literal["prefill", "decode"]] = {}
        names.update({f"{datacenter}-p{i}": "prefill" for i in range(engines.prefill)})
        names.update({f"{datacenter}-d{i}": "decode" for i in range(engines.decode)})
        return names

    def path(self, source: str, destination: str) -> tuple[str, ...]:
        """Names of the links from one datacenter to another, least delay first; () when the same.

        Raises LookupError when no chain of links joins them.
        """
        best: dict[str, tuple[float, tuple[str, ...]]] = {source: (0.0, ())}
        frontier = {source}
        while frontier:
            here = min(frontier, key=lambda name: (best[name][0], name))
            frontier.discard(here)
            cost, links = best[here]
            for name, link in self.links.items():
                if here not in link.between:
                    continue
                there = link.between[1] if here == link.between[0] else link.between[0]
                onward = cost + (link.direction(here).delay or 0.0) + 1e-9
                if onward < best.get(there, (math.inf, ()))[0]:
                    best[there] = (onward, (*links, name))
                    frontier.add(there)
        if destination not in best:
            raise LookupError(f"no links lead from {source!r} to {destination!r}")
        return best[destination][1]

    @model_validator(mode="after")
    def _hangs_together(self) -> Topology:
        problems: list[str] = []
        for name, link in self.links.items():
            for end in link.between:
                if end not in self.datacenters:
                    known = ", ".join(self.datacenters)
                    problems.append(f"links.{name}.between: there is no datacenter {end!r} (have: {known})")
        if not self.local:
            problems.append("datacenters: none has role local, so nothing can decode (add one)")
        if not problems:
            for prfaas in self.prfaas:
                if not any(self._joined(prfaas, local) for local in self.local):
                    problems.append(f"datacenters.{prfaas}: no link leads to a local datacenter (add one)")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _joined(self, one: str, other: str) -> bool:
        try:
            self.path(one, other)
        except LookupError:
            return False
        return True
