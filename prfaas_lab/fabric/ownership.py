"""A run's mark on the machine: what it made, written down before it is made.

The journal lies in `/run/prfaas-lab/<run_id>/`. A run lives as long as the process named in its
`owner.json`, known by pid and start time (so that a reused pid owns nothing). What a dead run's journal
names is removed, and nothing else: nothing is ever found by the look of its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric import namespaces

RUN_ID = re.compile(r"^[a-z0-9][a-z0-9-]{0,31}$")
KILL_TIMEOUT_S = 5.0
_OWNER, _JOURNAL, _BEING_MADE = "owner.json", "journal.jsonl", ".new-"


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """One process for sure: pids are reused, but never with the same start time in one boot."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessMark | None:
        """The mark of a process, or None when it is gone."""
        started = _start_time(pid)
        return None if started is None else cls(pid, started, _boot_id())

    @property
    def lives(self) -> bool:
        return self.boot == _boot_id() and _start_time(self.pid) == self.started


class Ownership:
    """What one run has made. Claim a thing before making it; `release` removes all of it."""

    def __init__(self, run_id: str, *, root: Path | None = None) -> None:
        """Raises FabricError when the run id is no plain name or already taken."""
        if not RUN_ID.match(run_id):
            raise FabricError(f"{run_id!r} is no run id", remedy="use a-z, 0-9 and dashes, at most 32")
        self.run_id = run_id
        self.directory = (root or journal_root()) / run_id
        _make_directory(self.directory)
        self._journal = (self.directory / _JOURNAL).open("a", buffering=1)
        self._claimed: set[Path] = set()

    def claim_namespace(self, name: str) -> str:
        """Write down a network namespace that is about to be made."""
        self._write({"netns": name})
        return name

    def claim_directory(self, path: Path) -> Path:
        """Write down a directory that is about to be made; it is removed with all it holds."""
        self._write({"directory": str(path)})
        return path

    def claim_process(self, pid: int) -> None:
        """Write down a child as soon as its pid is known; it is killed if it outlives the run."""
        mark = ProcessMark.of(pid)
        if mark is not None:
            self._write({"process": asdict(mark)})

    @property
    def sockets(self) -> Path:
        """A directory for this run's Unix sockets, short enough for their 108 bytes."""
        path = self.directory / "s"
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    @property
    def spill(self) -> Path:
        """A directory of this run on a disk, for what its prefix caches spill; claimed, and made by whoever
        writes there first. Not `/tmp`, which may be memory."""
        path = Path(os.environ.get("TMPDIR", "/var/tmp")) / f"prfaas-lab-{self.run_id}"
        if path not in self._claimed:
            self._claimed.add(self.claim_directory(path))
        return path

    def release(self) -> list[str]:
        """Remove everything this run made; what was removed, in words. May be called twice."""
        if self._journal.closed:
            return []
        self._journal.close()
        return _remove(self.directory)

    def _write(self, entry: dict[str, object]) -> None:
        self._journal.write(json.dumps(entry) + "\n")


def clean(all_dead: bool = True, *, root: Path | None = None) -> list[str]:
    """Remove what dead runs left: what was removed, in words. `all_dead=False` only looks."""
    report: list[str] = []
    for directory in sorted((root or journal_root()).glob("*/")):
        if directory.name.startswith(_BEING_MADE) or _lives(directory):
            continue
        report += _remove(directory) if all_dead else [what for what, _ in _leftovers(directory)]
    return report


def journal_root() -> Path:
    """Where journals lie: `/run/prfaas-lab` for root, else the user's own runtime directory."""
    if os.geteuid() == 0:
        return Path("/run/prfaas-lab")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "prfaas-lab" if runtime else Path(f"/tmp/prfaas-lab-{os.getuid()}")


def _make_directory(directory: Path) -> None:
    # Made aside and renamed, so that `clean` never meets a journal without its owner.
    mark = ProcessMark.of(os.getpid())
    assert mark is not None
    aside = directory.with_name(f"{_BEING_MADE}{directory.name}-{os.getpid()}")
    try:
        aside.mkdir(mode=0o700, parents=True)
        (aside / _OWNER).write_text(json.dumps(asdict(mark)))
        (aside / _JOURNAL).touch()
        aside.rename(directory)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise FabricError(
            f"cannot keep a journal there: {error.strerror}",
            where=str(directory),
            remedy="use another run id, or see who may write there",
        ) from error


def _lives(directory: Path) -> bool:
    try:
        return ProcessMark(**json.loads((directory / _OWNER).read_text())).lives
    except (OSError, ValueError, TypeError):
        return True  # not a journal of ours, so not ours to remove


def _leftovers(directory: Path) -> list[tuple[str, dict[str, object]]]:
    """What the journal names and is still there: processes first, then namespaces, then directories."""
    found: list[tuple[int, str, dict[str, object]]] = []
    for entry in _entries(directory):
        match entry:
            case {"process": {"pid": int(pid), "started": int(started), "boot": str(boot)}}:
                if ProcessMark(pid, started, boot).lives:
                    found.append((0, f"process {pid}", entry))
            case {"netns": str(name)} if namespaces.exists(name):
                found.append((1, f"network namespace {name}", entry))
            case {"directory": str(path)} if Path(path).exists():
                found.append((2, f"directory {path}", entry))
    ordered = sorted(found, key=lambda item: item[0])
    return [(what, entry) for _, what, entry in ordered] + [(f"journal {directory}", {})]


def _entries(directory: Path) -> list[dict[str, object]]:
    entries = []
    with contextlib.suppress(OSError):
        for line in (directory / _JOURNAL).read_text().splitlines():
            with contextlib.suppress(ValueError):  # the last line of a killed writer may be torn
                entries.append(json.loads(line))
    return entries


def _remove(directory: Path) -> list[str]:
    removed = []
    for what, entry in _leftovers(directory):
        match entry:
            case {"process": {"pid": int(pid), "started": int(started), "boot": str(boot)}}:
                _kill(ProcessMark(pid, started, boot))
            case {"netns": str(name)}:
                namespaces.delete(name)
            case {"directory": str(path)}:
                shutil.rmtree(path, ignore_errors=True)
        removed.append(what)
    shutil.rmtree(directory, ignore_errors=True)
    return removed


def _kill(mark: ProcessMark) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(mark.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(mark.pid, os.WNOHANG)  # only when it was our own child
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while mark.lives and not _is_zombie(mark.pid) and time.monotonic() < deadline:
        time.sleep(0.005)


def _start_time(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def _is_zombie(pid: int) -> bool:
    fields = _stat(pid)
    return fields is not None and fields[0] == "Z"


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on; the second may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
