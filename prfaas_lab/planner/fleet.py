"""What the equations need of a topology: sites with their hardware, and the bandwidth between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from prfaas_lab.errors import LabError, SpecError
from prfaas_lab.model.profile import Profile, find_profile
from prfaas_lab.spec.topology import Topology

Pair = tuple[str, str]
"""(PrfaaS site, local site)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Instances of one kind of hardware in one datacenter. At a local site any may prefill or decode."""

    name: str
    profile: Profile
    instances: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """A bandwidth that the KVCache of some (PrfaaS, local) pairs shares: a link, or a site's egress."""

    name: str
    rate_bps: float
    pairs: frozenset[Pair]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Every site. Within a local site KVCache moves freely (RDMA); between sites only along caps."""

    prfaas: tuple[Site, ...]
    local: tuple[Site, ...]
    caps: tuple[Cap, ...] = ()

    @property
    def n_prfaas(self) -> int:
        """PrfaaS instances over all sites."""
        return sum(site.instances for site in self.prfaas)

    @property
    def n_local(self) -> int:
        """Local instances over all sites."""
        return sum(site.instances for site in self.local)

    @property
    def is_plain(self) -> bool:
        """At most one site of either role: the equations hold as they stand."""
        return len(self.prfaas) <= 1 and len(self.local) == 1

    def homogeneous(self) -> Fleet:
        """The same number of instances, all of the first local site's hardware, in that site."""
        first, *rest = self.local
        grown = replace(first, instances=first.instances + self.n_prfaas)
        return Fleet(prfaas=(), local=(grown, *rest))


def fleet_of(topology: Topology, *, source: str = "") -> Fleet:
    """The fleet of a topology, profiles looked up by `hardware:` (files relative to that of `source`, the
    file that the topology is from).

    Raises SpecError naming every datacenter whose hardware is missing or unknown.
    """
    problems: list[str] = []
    folder = Path(source).parent if source else None
    sites = {name: _site(topology, name, folder, problems) for name in topology.datacenters}
    if problems:
        raise SpecError([f"{source}: {problem}" if source else problem for problem in problems])
    known = {name: site for name, site in sites.items() if site is not None}
    prfaas, local = (tuple(known[name] for name in names) for names in (topology.prfaas, topology.local))
    return Fleet(prfaas=prfaas, local=local, caps=_caps(topology))


def _site(topology: Topology, name: str, folder: Path | None, problems: list[str]) -> Site | None:
    datacenter = topology.datacenters[name]
    where = f"datacenters.{name}.hardware"
    if datacenter.hardware is None:
        problems.append(f"{where}: unset, so there is no profile to plan with (name one, such as 8xH20)")
        return None
    try:
        profile = find_profile(datacenter.hardware, folder=folder)
        if datacenter.role == "local":
            profile.decoding()
    except SpecError as error:
        problems.extend(f"{where}: {problem}" for problem in error.problems)
        return None
    except LabError as error:
        problems.append(f"{where}: {error}")
        return None
    return Site(
        name=name,
        profile=profile,
        instances=datacenter.engines.prefill + datacenter.engines.decode,
    )


def _caps(topology: Topology) -> tuple[Cap, ...]:
    """One cap per link direction and per egress limit on the way of some pair."""
    rates: dict[str, float] = {}
    pairs: dict[str, set[Pair]] = {}
    for source in topology.prfaas:
        for destination in topology.local:
            for name, rate_bps in _way(topology, source, destination):
                rates[name] = rate_bps
                pairs.setdefault(name, set()).add((source, destination))
    return tuple(Cap(name=n, rate_bps=rates[n], pairs=frozenset(pairs[n])) for n in rates)


def _way(topology: Topology, source: str, destination: str) -> list[tuple[str, float]]:
    """The limits met on the way: (name, bit/s)."""
    try:
        links = topology.path(source, destination)
    except LookupError:
        return [(f"no way from {source} to {destination}", 0.0)]
    found, here = [], source
    for name in links:
        link, egress = topology.links[name], topology.datacenters[here].egress
        rate_bps = link.direction(here).rate
        if rate_bps is not None:
            found.append((f"{name} from {here}", rate_bps))
        if egress is not None:
            found.append((f"egress of {here}", egress))
        here = link.between[1] if here == link.between[0] else link.between[0]
    return found
