"""A YAML file as plain values that remember their lines.

Only what a spec needs of YAML: one document, text keys, no tags, and the scalars of YAML 1.2
(`on` and `off` are text here, not booleans). Size, depth and aliases are bounded, so that no file
can hang the loader.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prfaas_lab.errors import SpecError

MAX_BYTES = 2**20
MAX_NODES = 100_000
MAX_DEPTH = 40

_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

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
        return f"{place}: {self.path}: {self.text}" if self.path else f"{place}: {self.text}"


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


def read_document(path: Path) -> Document:
    """The one YAML document in a file. Raises SpecError when it cannot be read as a mapping."""
    return parse_document(_read_text(path), str(path))


def parse_document(text: str, file: str) -> Document:
    """As `read_document`, of text; `file` is what mistakes are reported against."""
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unreadable(file, _friendly(error), mark.line + 1 if mark else 1) from None
    except yaml.YAMLError:
        raise Unreadable(file, "is not text (write YAML; is this a binary file?)") from None
    except RecursionError:
        raise Unreadable(file, f"is nested too deeply (at most {MAX_DEPTH} levels)") from None
    if node is None:
        raise Unreadable(file, "is empty (write at least a name: and what belongs to it)")
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise Unreadable(file, "is not a mapping of keys (start with a line like `name: ...`)", line)
    reading = _Reading(file)
    root = reading.value(node, ())
    return Document(file, root, tuple(reading.problems))


def line_of(root: Section, path: Sequence[str | int]) -> int:
    """The line of the deepest key or item on a path that exists; 1 when there is none."""
    line, here = 1, root
    for part in path:
        try:
            line, here = here.lines[part], here[part]  # type: ignore[index]
        except (AttributeError, LookupError, TypeError):
            break
    return line


def shown_path(path: Sequence[str | int]) -> str:
    """`events[0].at`: a key path as people write it."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part[:40]}" for part in path).lstrip(".")


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise Unreadable(str(path), "no such file (check the path)") from None
    except IsADirectoryError:
        raise Unreadable(str(path), "is a directory (name a .yaml file in it)") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unreadable(str(path), f"cannot be read: {reason}") from None
    if len(data) > MAX_BYTES:
        raise Unreadable(str(path), "is larger than 1 MiB (is this a scenario or topology file?)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable(
            str(path), "is not UTF-8 text (save it as UTF-8; is it a binary file?)", line
        ) from None


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's way)


def add_scalars(cls: Any) -> None:
    """Teach a PyYAML loader or dumper which plain scalars are not text."""
    for tag, pattern, first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?[0-9]{1,40}", list("-+0123456789")),
        (
            "float",
            r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]{1,4})?",
            list("-+.0123456789"),
        ),
    ):
        cls.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), first)


add_scalars(_Loader)


class _Reading:
    """Turns composed nodes into values, and collects what is wrong with them."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self._nodes = 0

    def value(self, node: yaml.Node, path: PathInFile) -> Any:
        self._nodes += 1
        line = node.start_mark.line + 1
        if self._nodes > MAX_NODES:
            raise Unreadable(self.file, f"grows beyond {MAX_NODES} values (use fewer YAML aliases)", line)
        if len(path) > MAX_DEPTH:
            raise Unreadable(self.file, f"is nested too deeply (at most {MAX_DEPTH} levels)", line)
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            self._add(line, path, _meaningless(node.tag))
        if isinstance(node, yaml.MappingNode):
            return self._section(node, path)
        if isinstance(node, yaml.SequenceNode):
            items = Items(self.value(child, (*path, i)) for i, child in enumerate(node.value))
            items.lines = [child.start_mark.line + 1 for child in node.value]
            return items
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _section(self, node: yaml.MappingNode, path: PathInFile) -> Section:
        section = Section()
        section.lines = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._add(line, path, "a key must be text (quote it, or give it a name)")
                continue
            key = str(key_node.value)
            if key in section:
                first = section.lines[key]
                self._add(line, (*path, key), f"the key is given twice (first on line {first}; drop one)")
                continue
            section.lines[key] = line
            section[key] = self.value(value_node, (*path, key))
        return section

    def _scalar(self, node: yaml.ScalarNode, path: PathInFile) -> Any:
        text = str(node.value)
        match node.tag.removeprefix("tag:yaml.org,2002:"):
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "str":
                return text
        self._add(node.start_mark.line + 1, path, _meaningless(node.tag))
        return text

    def _add(self, line: int, path: PathInFile, text: str) -> None:
        self.problems.append(Problem(self.file, line, shown_path(path), text))


def _meaningless(tag: str) -> str:
    return f"the YAML tag {tag.replace('tag:yaml.org,2002:', '!!')} means nothing here (drop it)"


def _friendly(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if "'\\t'" in problem:
        return "a tab where YAML wants spaces (indent with spaces)"
    if "but found another document" in problem:
        return "a second document starts here (one file, one document: drop the ---)"
    if "undefined alias" in problem:
        return f"is not YAML: {problem} (define it with & first)"
    problem = re.sub(r"'<(.*?)>'", r"a \1", problem)
    context = f"{error.context}, " if error.context else ""
    return f"is not YAML: {context}{problem} (check indentation, colons and quotes)"
