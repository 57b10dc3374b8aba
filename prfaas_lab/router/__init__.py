"""Pure placement decisions: the values a policy sees, and the policies by name."""

from prfaas_lab.router.placing import NoPlacement
from prfaas_lab.router.registry import POLICIES, UNAWARE, policy, route_of
from prfaas_lab.router.values import Costs, DatacenterView, EngineView, PathView, Placement, Plan, Route, View

__all__ = [
    "POLICIES", "UNAWARE", "Costs", "DatacenterView", "EngineView", "NoPlacement", "PathView", "Placement",
    "Plan", "Route", "View", "policy", "route_of",
]  # fmt: skip
