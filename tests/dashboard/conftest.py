"""Lets these tests use the fake run of the metrics tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "metrics"))
