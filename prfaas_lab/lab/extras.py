"""What is not installed with the rest: Ray, pyarrow, matplotlib."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from prfaas_lab.errors import UsageError


def needs(option: str, module: str) -> None:
    """Asked before the work. Raises UsageError where the module that an option needs is not installed."""
    if find_spec(module) is None:
        remedy = f"{sys.executable} -m pip install {module}"
        raise UsageError(f"{module} is not installed", where=option, remedy=remedy)
