"""requirements.py full|emulation: what to install, one a line, read from pyproject.toml.

`emulation` is everything but the model and the linters: small enough for a virtual machine whose CPU is
emulated, and enough for `scripts/test --emulation`, `prfaas-lab doctor` and `prfaas-lab link-test`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

NOT_FOR_EMULATION = {"torch", "transformers", "mypy", "ruff", "types-PyYAML"}


def main(environment: str) -> None:
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    print(*requirements(pyproject, environment), sep="\n")


def requirements(pyproject: dict, environment: str) -> list[str]:
    """What builds the package comes too, so that it can be installed without build isolation."""
    project = pyproject["project"]
    every = pyproject["build-system"]["requires"] + project["dependencies"]
    every += project["optional-dependencies"]["test"]
    if environment == "full":
        return every
    return [requirement for requirement in every if name(requirement) not in NOT_FOR_EMULATION]


def name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


if __name__ == "__main__":
    if sys.argv[1:] not in (["full"], ["emulation"]):
        sys.exit("usage: requirements.py full|emulation")
    main(sys.argv[1])
