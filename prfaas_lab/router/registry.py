"""The policies by name, and a user's own by its dotted path."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from prfaas_lab.errors import LabError, UsageError
from prfaas_lab.router.earliest_finish import earliest_finish
from prfaas_lab.router.placement_cache import cache_aware
from prfaas_lab.router.policies import balanced, local_only, remote_all, threshold
from prfaas_lab.router.values import Placement, Plan, Route, View
from prfaas_lab.spec.scenario import Policy
from prfaas_lab.workload.request import Request

POLICIES: dict[str, Route] = {
    "prfaas": cache_aware(threshold),
    "threshold": threshold,
    "homogeneous": local_only,
    "naive": remote_all,
    "balanced": balanced,
    "local-only": local_only,
    "remote-all": remote_all,
    "cache-aware": cache_aware(threshold),
    "earliest-finish": earliest_finish,
}
"""`prfaas` routes as `cache-aware` does, and while it runs `lab.scheduler` moves its plan. `homogeneous` and
`naive` route as `local-only` and `remote-all` do; `compare` also gives them the deployment that the paper
gives them."""

UNAWARE = frozenset(("threshold", "homogeneous", "naive", "balanced", "local-only", "remote-all"))
"""Those that look at no way beyond whether it is up: nothing of its load needs to be known for them."""


def route_of(asked: Policy, *, has_costs: bool = True) -> Route:
    """The policy that a scenario asks for. Raises LabError as `policy` does, and UsageError where it lacks
    that without which every request would fail: an option, or (`has_costs`) profiles of what runs."""
    if asked.name == "balanced" and asked.share is None:
        raise UsageError(
            "the balanced policy has no share to offload",
            where="policy.share",
            remedy="set it, such as share: 0.5; for paced engines `compare` plans one",
        )
    if asked.name == "earliest-finish" and not has_costs:
        raise UsageError(
            "the earliest-finish policy knows no hardware profiles",
            where="policy.name",
            remedy="run paced engines (engine.executor: paced), or give every datacenter hardware: FILE",
        )
    return policy(asked.name)


def policy(name: str) -> Route:
    """The policy of that name, or the function that `module:function` names (looked for in the working
    directory too). Raises LabError naming the nearest one."""
    if name in POLICIES:
        return POLICIES[name]
    if ":" in name:
        return _users_own(name)
    near = difflib.get_close_matches(name, POLICIES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"have: {', '.join(POLICIES)}, or module:function"
    raise _unknown(f"there is no policy {name!r}", hint)


def _users_own(path: str) -> Route:
    module, _, function = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module does as it is imported
        remedy = "write module:function, of a module that can be imported from here"
        raise _unknown(f"cannot load policy {path!r}: {error}", remedy) from error
    if not callable(found):
        raise _unknown(f"policy {path!r} is no function", "give one that takes (request, view, plan)")
    return _told(path, found)


def _told(path: str, route: Callable[..., object]) -> Route:
    """A user's policy whose mistakes are told as theirs, with their place, and not as a fault of ours."""

    def told(request: Request, view: View, plan: Plan) -> Placement:
        try:
            placement = route(request, view, plan)
        except LabError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise LabError(
                f"{path} failed: {type(error).__name__}: {error}", where=f"{last.filename}:{last.lineno}"
            ) from error
        if not isinstance(placement, Placement):
            raise LabError(
                f"{path} gave {placement!r}, which is no Placement",
                where="policy.name",
                remedy="return a prfaas_lab.router.Placement",
            )
        for name in (placement.prefill, placement.decode):
            if all(engine.name != name for engine in view.engines):
                raise LabError(f"{path} chose engine {name!r}, which there is not", where="policy.name")
        return placement

    return told


def _unknown(what: str, remedy: str) -> UsageError:
    return UsageError(what, where="policy.name", remedy=remedy)
