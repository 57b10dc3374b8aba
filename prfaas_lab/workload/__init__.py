"""Seeded workloads: when requests arrive, how long they are, what their prompts say."""

from prfaas_lab.workload.generate import generate
from prfaas_lab.workload.request import Request

__all__ = ["Request", "generate"]
