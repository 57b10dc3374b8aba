"""What holds for every test: how hypothesis draws, and what `realtime` means."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

RERUNS = 2
"""How often a test of real time is run again when it fails."""

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Without limits of time: the machine may be busy with other things."""
settings.register_profile("search", patient)
settings.register_profile("gate", patient, derandomize=True)
settings.load_profile("gate")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("realtime"):
            item.add_marker(pytest.mark.flaky(reruns=RERUNS, reruns_delay=1))
