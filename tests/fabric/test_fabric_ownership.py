"""A run removes what it made; `clean` removes what a dead run made, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.ownership import Ownership, ProcessMark, clean


def dead_run(root: Path, run_id: str = "dead") -> Path:
    """A journal whose owner has ended."""
    code = (
        "import sys; from pathlib import Path; from prfaas_lab.fabric.ownership import Ownership\n"
        "Ownership(sys.argv[2], root=Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(root), run_id], check=True)
    return root / run_id


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def note(journal: Path, entry: dict[str, object]) -> None:
    with (journal / "journal.jsonl").open("a") as lines:
        lines.write(json.dumps(entry) + "\n")


def test_a_live_run_is_left_alone(tmp_path: Path) -> None:
    ownership = Ownership("alive", root=tmp_path)
    kept = ownership.claim_directory(tmp_path / "kept")
    kept.mkdir()
    assert clean(root=tmp_path) == []
    assert kept.exists()
    ownership.release()
    assert not kept.exists()
    assert not ownership.directory.exists()


def test_what_a_run_spilled_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "disk"))
    ownership = Ownership("spills", root=tmp_path / "run")
    (ownership.spill / "p0").mkdir(parents=True)
    (ownership.spill / "p0" / "1.kv").write_bytes(b"KVCache")
    assert (ownership.directory / "journal.jsonl").read_text().count(str(ownership.spill)) == 1
    ownership.release()
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_dead_run_is_removed_with_all_it_claimed(tmp_path: Path) -> None:
    journal = dead_run(tmp_path)
    left = tmp_path / "left"
    left.mkdir()
    (left / "file").touch()
    note(journal, {"directory": str(left)})
    removed = clean(root=tmp_path)
    assert removed == [f"directory {left}", f"journal {journal}"]
    assert not left.exists()
    assert not journal.exists()
    assert clean(root=tmp_path) == []


def test_looking_only_removes_nothing(tmp_path: Path) -> None:
    journal = dead_run(tmp_path)
    assert clean(all_dead=False, root=tmp_path) == [f"journal {journal}"]
    assert journal.exists()


def test_a_process_that_outlived_its_run_is_killed(tmp_path: Path) -> None:
    journal, child = dead_run(tmp_path), sleeper()
    mark = ProcessMark.of(child.pid)
    assert mark is not None
    note(journal, {"process": {"pid": mark.pid, "started": mark.started, "boot": mark.boot}})
    assert f"process {child.pid}" in clean(root=tmp_path)
    assert child.wait(10) != 0


def test_a_reused_pid_is_somebody_else(tmp_path: Path) -> None:
    journal, child = dead_run(tmp_path), sleeper()
    mark = ProcessMark.of(child.pid)
    assert mark is not None
    note(journal, {"process": {"pid": mark.pid, "started": mark.started - 1, "boot": mark.boot}})
    note(journal, {"process": {"pid": mark.pid, "started": mark.started, "boot": "an earlier boot"}})
    clean(root=tmp_path)
    assert child.poll() is None
    child.kill()
    child.wait()


def test_an_owner_of_another_boot_is_dead(tmp_path: Path) -> None:
    journal = Ownership("old", root=tmp_path).directory
    owner = json.loads((journal / "owner.json").read_text())
    (journal / "owner.json").write_text(json.dumps(owner | {"boot": "an earlier boot"}))
    assert clean(root=tmp_path) == [f"journal {journal}"]


def test_what_is_no_journal_is_not_touched(tmp_path: Path) -> None:
    stranger = tmp_path / "pl-looks-like-ours"
    stranger.mkdir()
    (stranger / "file").touch()
    assert clean(root=tmp_path) == []
    assert stranger.exists()


def test_a_torn_last_line_hides_nothing_before_it(tmp_path: Path) -> None:
    journal = dead_run(tmp_path)
    left = tmp_path / "left"
    left.mkdir()
    note(journal, {"directory": str(left)})
    with (journal / "journal.jsonl").open("a") as lines:
        lines.write('{"directory": "/tor')
    assert f"directory {left}" in clean(root=tmp_path)


def test_two_runs_cannot_share_an_id(tmp_path: Path) -> None:
    first = Ownership("same", root=tmp_path)
    with pytest.raises(FabricError, match="cannot keep a journal"):
        Ownership("same", root=tmp_path)
    first.release()
    Ownership("same", root=tmp_path).release()


@pytest.mark.parametrize("run_id", ["", "..", "a/b", "Upper", "x" * 40])
def test_a_run_id_is_a_plain_name(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(FabricError, match="no run id"):
        Ownership(run_id, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_ended_process_has_no_mark() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert ProcessMark.of(child.pid) is None
    own = ProcessMark.of(os.getpid())
    assert own is not None
    assert own.lives
