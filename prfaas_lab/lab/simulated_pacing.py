"""The profiles that a simulation reckons with; for a scenario that runs a real model, a measured one."""

from __future__ import annotations

from pathlib import Path

from prfaas_lab.errors import LabError
from prfaas_lab.lab.orders import PacedModel
from prfaas_lab.lab.pacing import Pacing, pacing_of
from prfaas_lab.model.profile import Profile, find_profile, shipped_hardware
from prfaas_lab.spec.scenario import Resolved


def simulated_pacing(resolved: Resolved, measured: Path | None = None) -> Pacing:
    """As the scenario says when its engines are paced. The real model's time and bytes are not
    scaled, and its profile is `measured`, or the shipped one of its name. Raises LabError when there
    is none, or KVCache is to be compressed, which no profile says the size of."""
    if resolved.scenario.transport.compression != "none":
        raise LabError(
            "how far KVCache shrinks depends on its bytes, and a simulation has none",
            where="transport.compression",
            remedy="simulate it with none, or run prfaas-lab scenario",
        )
    pacing = pacing_of(resolved)
    if pacing is not None:
        return pacing
    name = resolved.scenario.model.name
    if measured is not None:
        return _pacing(resolved, find_profile(str(measured)))
    if name is None or name not in shipped_hardware():
        raise LabError(
            f"no profile was measured of {name or resolved.scenario.model.path!r}",
            where="model",
            remedy=f"simulate one of {', '.join(n for n in shipped_hardware() if n.endswith('-tiny'))}, "
            "or set engine: {executor: paced}",
        )
    return _pacing(resolved, find_profile(name))


def _pacing(resolved: Resolved, profile: Profile) -> Pacing:
    state_bytes = round(profile.kv_bytes(0))
    model = PacedModel(
        title=profile.model, token_bytes=round(profile.kv_bytes(1)) - state_bytes, state_bytes=state_bytes
    )
    profiles = dict.fromkeys(resolved.topology.datacenters, profile)
    return Pacing(model=model, profiles=profiles, scale=1.0, time_scale=1.0, machine=profile.machine)
