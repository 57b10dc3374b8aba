"""A topology: datacenters, their engines, and the links between them, as frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)  # fmt: skip
from pydantic_core import CoreSchema

from prfaas_lab.spec.quantities import Count, Duration, Fraction, Rate, Size, Tokens

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,23}$", examples=["prfaas-east"])]
"""What a thing is called: lower-case letters, digits and dashes, at most 24, a letter first."""


class Misfit(ValueError):
    """Values that are each fine but do not fit together: (key path within the model, what) pairs."""

    def __init__(self, *problems: tuple[Sequence[str | int], str]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{'.'.join(map(str, path))}: {text}" for path, text in problems))


class Spec(BaseModel):
    """The base of everything read from a file: frozen, and no unknown key is let through."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @model_serializer(mode="wrap")
    def _leave_out_what_is_unset(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        # In a file an absent key is unset, but an explicit null overrides (a link's `forward`).
        values: dict[str, Any] = handler(self)
        if info.mode != "json":
            return values
        return {key: v for key, v in values.items() if v is not None or key in self.model_fields_set}


class GilbertElliott(Spec):
    """Bursty loss: a good and a bad state with a loss each (netem's `loss gemodel`)."""

    p: Fraction = Field(description="chance to go from good to bad, per packet")
    r: Fraction = Field(description="chance to go from bad to good, per packet")
    loss_bad: Fraction = Field(default=1.0, description="loss in the bad state (netem's 1-h)")
    loss_good: Fraction = Field(default=0.0, description="loss in the good state (netem's 1-k)")


def _is_bursty(value: Any) -> str:
    return "<bursts>" if isinstance(value, Mapping | GilbertElliott) else "<share>"


Loss = Annotated[
    Annotated[Fraction, Tag("<share>")] | Annotated[GilbertElliott, Tag("<bursts>")],
    Discriminator(_is_bursty),
]
"""Random loss as a share, or bursty loss as a mapping."""


class Impairment(Spec):
    """One direction of a link. Unset means: as the link says, or perfect."""

    rate: Rate | None = Field(default=None, description="nominal bit rate; unset is unshaped")
    delay: Duration | None = Field(default=None, description="one-way delay")
    jitter: Duration | None = Field(default=None, description="deviation of the delay")
    distribution: Literal["uniform", "normal", "pareto", "paretonormal"] | None = Field(
        default=None, description="shape of the jitter"
    )
    delay_correlation: Fraction | None = Field(default=None, description="correlation of consecutive jitters")
    loss: Loss | None = Field(default=None, description="random or Gilbert-Elliott")
    reorder: Fraction | None = Field(default=None, description="share sent at once, overtaking others")
    duplicate: Fraction | None = Field(default=None, description="share sent twice")
    corrupt: Fraction | None = Field(default=None, description="share with one bit flipped")
    queue: Size | None = Field(
        default=None, description="queue limit; derived from rate and delay when unset"
    )


class Link(Impairment):
    """A path between two datacenters. The top keys hold for both directions; `forward` (first to
    second of `between`) and `backward` override them for one."""

    between: tuple[Name, Name] = Field(description="the two datacenters it joins", examples=["[east, west]"])
    forward: Impairment = Field(default=Impairment(), description="overrides, first to second of between")
    backward: Impairment = Field(default=Impairment(), description="overrides, second to first of between")

    def direction(self, source: str) -> Impairment:
        """The impairment met by packets that leave `source` over this link."""
        override = self.forward if source == self.between[0] else self.backward
        common = {key: getattr(self, key) for key in Impairment.model_fields}
        return Impairment(**{**common, **{k: getattr(override, k) for k in override.model_fields_set}})

    @model_validator(mode="after")
    def _ends_differ(self) -> Link:
        if self.between[0] == self.between[1]:
            raise Misfit((["between"], f"a link from {self.between[0]!r} to itself (name two datacenters)"))
        return self


class Engines(Spec):
    """How many engines of each role a datacenter has."""

    prefill: Count = Field(default=0, ge=0, le=2000, description="engines that prefill")
    decode: Count = Field(default=0, ge=0, le=2000, description="engines that decode")


class PrefixCache(Spec):
    """What a datacenter keeps of computed prefixes; its engines share it equally. May be written as just
    the size of its memory."""

    memory: Size = Field(description="budget in host memory")
    disk: Size = Field(default=0, description="budget of a second tier on disk; 0 is none")
    snapshots: Literal["branch", "end", "every", "every+end"] = Field(
        default="branch",
        description="where states are kept: branch: where a prompt leaves what is held, and at its end; "
        "end: at its end; every: each `snapshot_every` tokens",
    )
    snapshot_every: Tokens = Field(default=512, gt=0, description="tokens between the snapshots of `every`")
    eviction: Literal["cost", "lru"] = Field(
        default="cost", description="what goes first: what saves least per byte, or the least recently used"
    )
    answers: Literal["keep", "drop"] = Field(
        default="keep",
        description="keep: what decode computed of an answer is handed to a prefill engine beside it, for "
        "the next turn; drop: the next turn computes it again",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"memory": value} if isinstance(value, str | int | float) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core))
        description, memory = schema.pop("description", ""), schema["properties"]["memory"]
        return {"description": description, "anyOf": [*memory["anyOf"], schema]}


class Datacenter(Spec):
    """One site. `prfaas` sites only prefill, for others; `local` sites prefill and decode (PD)."""

    role: Literal["prfaas", "local"] = Field(
        description="prfaas: prefills for others; local: prefills and decodes"
    )
    engines: Engines = Field(description="how many engines of each role", examples=["{prefill: 1}"])
    hardware: str | None = Field(default=None, description="profile of one engine, for paced engines")
    intra: Impairment = Field(
        default=Impairment(), description="links between an engine and its gateway; unshaped when unset"
    )
    egress: Rate | None = Field(
        default=None, description="cap on everything that leaves this datacenter, over all links"
    )
    cache: PrefixCache | None = Field(
        default=None, description="the prefix cache; unset is none", examples=["64GiB"]
    )

    @model_validator(mode="after")
    def _engines_fit_the_role(self) -> Datacenter:
        count = self.engines.prefill + self.engines.decode
        if count == 0:
            raise Misfit((["engines"], "no engines at all (set engines: {prefill: 1} or more)"))
        if self.role == "prfaas" and self.engines.decode:
            raise Misfit((["engines"], "a prfaas datacenter only prefills (drop decode, or use role: local)"))
        if self.role == "local" and not self.engines.decode:
            raise Misfit((["engines"], "a local datacenter must decode (set engines: {decode: 1} or more)"))
        return self


class Topology(Spec):
    """The world a scenario runs in. Rates, delays and sizes are those of the real world."""

    name: Name
    description: str = Field(default="", description="what it stands for, in a line or two")
    datacenters: dict[Name, Datacenter] = Field(min_length=1, max_length=64, description="name -> site")
    links: dict[Name, Link] = Field(default_factory=dict, max_length=256, description="name -> path")

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
        ends = {name: link.between for name, link in self.links.items()}
        roles = {name: dc.role for name, dc in self.datacenters.items()}
        problems = misfits(roles, ends)
        if not any(dc.engines.prefill for dc in self.datacenters.values()):
            problems.append((["datacenters"], "no engine prefills (set engines: {prefill: 1} in one)"))
        engines = {name: dc for dc in self.datacenters for name in self.engine_names(dc)}
        for name in engines.keys() & self.datacenters.keys():
            text = f"is also the name of an engine of {engines[name]!r} (rename this datacenter)"
            problems.append((["datacenters", name], text))
        if problems:
            raise Misfit(*problems)
        return self


def misfits(
    roles: Mapping[str, str], ends: Mapping[str, Sequence[str]]
) -> list[tuple[Sequence[str | int], str]]:
    """What is wrong with datacenters (name -> role) and links (name -> ends) taken together."""
    problems: list[tuple[Sequence[str | int], str]] = []
    for link, pair in ends.items():
        for i, end in enumerate(pair):
            if end not in roles:
                have = ", ".join(roles)
                problems.append(
                    (["links", link, "between", i], f"there is no datacenter {end!r} (have: {have})")
                )
    if "local" not in roles.values():
        problems.append((["datacenters"], "none has role: local, so nothing can decode (add one)"))
    elif not problems:
        for name, role in roles.items():
            if role == "prfaas" and not any(roles[end] == "local" for end in _reachable(name, ends)):
                problems.append(
                    (["datacenters", name], "no link leads to a local datacenter (add one to links:)")
                )
    return problems


def _reachable(start: str, ends: Mapping[str, Sequence[str]]) -> set[str]:
    seen, frontier = {start}, [start]
    while frontier:
        here = frontier.pop()
        found = {end for pair in ends.values() if here in pair for end in pair} - seen
        seen |= found
        frontier += found
    return seen
