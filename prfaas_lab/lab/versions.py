"""The versions of all that a rerun needs to be the same."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("prfaas-lab", "torch", "transformers", "numpy", "pyroute2", "uvloop", "aiohttp", "xxhash")


def versions() -> dict[str, str]:
    """Read from the packages' metadata, so that nothing heavy is imported for it."""
    found = {"python": platform.python_version(), "kernel": platform.release()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
