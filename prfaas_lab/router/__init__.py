"""Pure placement decisions: the values a policy sees, and the policies by name."""

from prfaas_lab.router.policies import POLICIES, NoPlacement, policy
from prfaas_lab.router.values import DatacenterView, EngineView, PathView, Placement, Plan, Route, View

__all__ = [
    "POLICIES", "DatacenterView", "EngineView", "NoPlacement", "PathView", "Placement", "Plan", "Route",
    "View", "policy",
]  # fmt: skip
