"""modules.py DIRECTORY NAME...: load kernel modules with what they depend on (the guest has no kmod)."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

FINIT_MODULE = 313
"""The system call's number on x86-64."""
_libc = ctypes.CDLL(None, use_errno=True)


def main(directory: Path, names: list[str]) -> None:
    root = directory / os.uname().release
    loaded: set[str] = set()
    dependencies = read_dependencies(root / "modules.dep")
    for name in names:
        if name in dependencies:
            load(root, name, dependencies, loaded)
        else:
            print(f"modules.py: {name} is built in or missing", file=sys.stderr)


def read_dependencies(path: Path) -> dict[str, list[str]]:
    """Module name -> its file and those it needs, nearest first."""
    found = {}
    for line in path.read_text().splitlines():
        file, _, needs = line.partition(":")
        found[Path(file).name.partition(".")[0].replace("-", "_")] = [file, *needs.split()]
    return found


def load(root: Path, name: str, dependencies: dict[str, list[str]], loaded: set[str]) -> None:
    for file in reversed(dependencies[name]):
        if file not in loaded:
            insert(root / file)
            loaded.add(file)


def insert(file: Path) -> None:
    with file.open("rb") as module:
        failed = _libc.syscall(FINIT_MODULE, module.fileno(), b"", 0)
    if failed and ctypes.get_errno() != errno.EEXIST:
        sys.exit(f"modules.py: cannot load {file}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
