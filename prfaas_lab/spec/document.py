"""What a file says, with the line of everything in it, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prfaas_lab.errors import SpecError

PathInFile = tuple[str | int, ...]
"""Where a value is within a file: `("links", "wan", "between", 0)`."""


class Section(dict[str, Any]):
    """A mapping; `lines` holds the line of each key."""

    lines: dict[str, int]


class Items(list[Any]):
    """A sequence; `lines` holds the line of each item."""

    lines: list[int]


@dataclass(frozen=True, order=True, slots=True)
class Problem:
    """One mistake: where it is, what it is, and the remedy in parentheses."""

    file: str
    line: int
    path: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        said = f"{self.path}: {self.text}" if self.path else self.text
        # Names from the file are quoted in it: no line break or escape sequence may get through.
        return f"{place}: {''.join(c if c.isprintable() else '?' for c in said)}"


class Unreadable(SpecError):
    """A file that cannot be read at all, or not as one YAML mapping."""

    def __init__(self, file: str, text: str, line: int = 0) -> None:
        self.problem = Problem(file, line, "", text)
        super().__init__([str(self.problem)])


@dataclass(frozen=True, slots=True)
class Document:
    """A file's root mapping, and the mistakes that are YAML's rather than the spec's."""

    file: str
    root: Section
    problems: tuple[Problem, ...]

    def problem(self, path: Sequence[str | int], text: str) -> Problem:
        """A mistake at a key path, on the line of the deepest part of it that the file has."""
        return Problem(self.file, line_of(self.root, path), shown_path(path), text)


def line_of(root: Section, path: Sequence[str | int]) -> int:
    """The line of the deepest key or item on a path that exists; 1 when there is none."""
    line, here = 1, root
    for part in path:
        try:
            line, here = here.lines[part], here[part]  # type: ignore[index]
        except (AttributeError, LookupError, TypeError):
            break
    return line


def value_at(root: Any, path: PathInFile) -> Any:
    """The value at a path that exists."""
    for part in path:
        root = root[part]
    return root


def shown_path(path: Sequence[str | int]) -> str:
    """`events[0].at`: a key path as people write it."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part[:40]}" for part in path).lstrip(".")
