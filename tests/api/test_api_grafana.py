"""The dashboard that we ship asks only for metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from api_deployment import serving

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
METRIC = re.compile(r"\b(?:vllm:|prfaas_)[a-z0-9_]+")


async def test_every_metric_of_the_dashboard_is_exported() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {name for panel in panels for t in panel["targets"] for name in METRIC.findall(t["expr"])}
    async with serving() as served, served.client.get("/metrics") as response:
        text = await response.text()
    families = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    series = families | {f"{name}_{end}" for name in families for end in ("bucket", "sum", "count")}
    assert asked
    assert asked <= series
