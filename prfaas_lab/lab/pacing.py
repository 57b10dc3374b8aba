"""Paced runs: which profile each datacenter's engines keep to, and the one model they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prfaas_lab.errors import LabError, SpecError
from prfaas_lab.lab.orders import Pace, PacedModel
from prfaas_lab.model.paced_layout import paced_bytes
from prfaas_lab.model.profile import Machine, Profile, find_profile
from prfaas_lab.router import Costs
from prfaas_lab.spec.scenario import Resolved
from prfaas_lab.spec.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """The paced engines of a run."""

    model: PacedModel
    profiles: Mapping[str, Profile]
    """Of each datacenter."""
    scale: float
    time_scale: float
    machine: Machine | None = None
    """What simulated engines share; None for paced ones, which share nothing."""

    @property
    def costs(self) -> Costs:
        """What policies may reckon with."""
        return Costs(profiles=self.profiles, scale=self.scale, time_scale=self.time_scale)

    def of(self, datacenter: str) -> Pace:
        """What the engines of a datacenter are told."""
        return Pace(model=self.model, profile=self.profiles[datacenter], time_scale=self.time_scale)


def pacing_of(resolved: Resolved) -> Pacing | None:
    """None when the scenario runs the real model. Raises SpecError for a datacenter without a profile
    that fits, LabError when their models make different KVCache or `scale` leaves too little of it."""
    scenario = resolved.scenario
    if scenario.engine.executor != "paced":
        return None
    profiles = profiles_of(resolved.topology, Path(resolved.source).parent)
    curves = {name: profile.kvcache.knots for name, profile in profiles.items()}
    if len(set(curves.values())) > 1:
        raise LabError(
            "their profiles make different KVCache, so none can decode what another prefilled",
            where=", ".join(curves),
            remedy="name hardware that runs one model",
        )
    profile = next(iter(profiles.values()))
    token_bytes, state_bytes = paced_bytes(profile.kvcache, scenario.scale)
    model = PacedModel(title=profile.model, token_bytes=token_bytes, state_bytes=state_bytes)
    return Pacing(model=model, profiles=profiles, scale=scenario.scale, time_scale=scenario.time_scale)


def costs_of(resolved: Resolved) -> Costs | None:
    """What policies and the scheduler may reckon with. For the real model, profiles that were measured of
    it (`prfaas-lab calibrate`), where every datacenter's `hardware` names one; else None.

    Raises SpecError for a profile that does not exist.
    """
    pacing = pacing_of(resolved)
    if pacing is not None:
        return pacing.costs
    if any(site.hardware is None for site in resolved.topology.datacenters.values()):
        return None
    profiles = profiles_of(resolved.topology, Path(resolved.source).parent)
    model = resolved.scenario.model
    if any(profile.model != (model.path or model.name) for profile in profiles.values()):
        return None
    return Costs(profiles=profiles)


def profiles_of(topology: Topology, folder: Path) -> dict[str, Profile]:
    """The profile of each datacenter. Raises SpecError naming every one that is missing."""
    problems: list[str] = []
    found: dict[str, Profile] = {}
    for name, datacenter in topology.datacenters.items():
        where = f"datacenters.{name}.hardware"
        if datacenter.hardware is None:
            problems.append(
                f"{where}: unset, but paced engines keep to its profile (name one, such as 8xH20)"
            )
            continue
        try:
            found[name] = find_profile(datacenter.hardware, folder=folder)
            if datacenter.engines.decode:
                found[name].decoding()
        except SpecError as error:
            problems += [f"{where}: {problem}" for problem in error.problems]
        except LabError as error:
            problems.append(f"{where}: {error}")
    if problems:
        raise SpecError(problems)
    return found
