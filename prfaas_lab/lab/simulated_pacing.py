"""The profiles that a simulation reckons with; for a scenario that runs a real model, a measured one."""

from __future__ import annotations

from prfaas_lab.errors import LabError
from prfaas_lab.lab.orders import PacedModel
from prfaas_lab.lab.pacing import Pacing, pacing_of
from prfaas_lab.model.profile import find_profile, shipped_profiles
from prfaas_lab.spec.scenario import Resolved


def simulated_pacing(resolved: Resolved) -> Pacing:
    """As the scenario says when its engines are paced. The real model's time and bytes are not
    scaled, and its profile has its name. Raises LabError when none was measured."""
    pacing = pacing_of(resolved)
    if pacing is not None:
        return pacing
    name = resolved.scenario.model.name
    if name is None or name not in shipped_profiles():
        raise LabError(
            f"no profile was measured of {name or resolved.scenario.model.path!r}",
            where="model",
            remedy=f"simulate one of {', '.join(n for n in shipped_profiles() if n.endswith('-tiny'))}, "
            "or set engine: {executor: paced}",
        )
    profile = find_profile(name)
    state_bytes = round(profile.kv_bytes(0))
    model = PacedModel(
        title=profile.model, token_bytes=round(profile.kv_bytes(1)) - state_bytes, state_bytes=state_bytes
    )
    profiles = dict.fromkeys(resolved.topology.datacenters, profile)
    return Pacing(model=model, profiles=profiles, scale=1.0, time_scale=1.0)
