"""Every mistake in a file is told at once, each on its line, with a remedy.

The files in `broken/` say themselves what is expected: `#!` at the end of a line begins a message
about that line. The messages found must be these and no others.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prfaas_lab.errors import SpecError
from prfaas_lab.spec import load_scenario, load_topology

BROKEN = Path(__file__).parent / "broken"
FILES = sorted(BROKEN.glob("*.yaml"))


def problems_of(path: Path) -> tuple[str, ...]:
    load = load_scenario if path.name.startswith("scenario") else load_topology
    with pytest.raises(SpecError) as caught:
        load(path)
    assert caught.value.exit_code == 2
    return caught.value.problems


def expected_of(path: Path) -> list[str]:
    return [
        f"{path}:{number}: {message.strip().replace('{folder}', str(path.parent))}"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        for message in line.split("#!")[1:]
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_broken_file_is_told_all_its_mistakes(path: Path) -> None:
    assert sorted(problems_of(path)) == sorted(expected_of(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_mistakes_come_in_the_order_of_the_lines(path: Path) -> None:
    lines = [int(re.match(r".*?:(\d+): ", problem)[1]) for problem in problems_of(path)]  # type: ignore[index]
    assert lines == sorted(lines)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_message_ends_in_a_remedy_and_speaks_no_jargon(path: Path) -> None:
    for problem in problems_of(path):
        assert problem.endswith(")"), problem
        for jargon in ("pydantic", "Input should", "valid ", "Value error", "NoneType", "<", "dict"):
            assert jargon not in problem.replace("0 < min < max", ""), problem


def test_there_are_enough_of_them() -> None:
    assert len(FILES) >= 25
