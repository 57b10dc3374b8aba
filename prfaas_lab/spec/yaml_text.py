"""Reads YAML into a `Document`.

Only what a spec needs of YAML: one document, text keys, no tags, and the scalars of YAML 1.2
(`on` and `off` are text here, not booleans). Size, depth and aliases are bounded, so that no file
can hang the loader.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from prfaas_lab.spec.document import Document, Items, PathInFile, Problem, Section, Unreadable, shown_path

MAX_BYTES = 2**20
MAX_NODES = 20_000
MAX_DEPTH = 40
_TOO_DEEP = f"is nested too deeply (at most {MAX_DEPTH} levels)"

_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


def read_document(path: Path) -> Document:
    """The one YAML document in a file. Raises SpecError when it cannot be read as a mapping."""
    return parse_document(_read_text(path), str(path))


def parse_document(text: str, file: str) -> Document:
    """As `read_document`, of text; `file` is what mistakes are reported against."""
    try:
        node = _Loader(text, file).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unreadable(file, _friendly(error), mark.line + 1 if mark else 1) from None
    except yaml.YAMLError:
        raise Unreadable(file, "is not text (write YAML; is this a binary file?)") from None
    if node is None:
        raise Unreadable(file, "is empty (write at least a name: and what belongs to it)")
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise Unreadable(file, "is not a mapping of keys (start with a line like `name: ...`)", line)
    reading = _Reading(file)
    root = reading.value(node, ())
    return Document(file, root, tuple(reading.problems))


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
    """SafeLoader with the core scalars of YAML 1.2, and bounds on what a file may hold."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's way)

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text)
        self._file, self._nodes, self._depth = file, 0, 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        # Here rather than on the finished tree: a parser thousands of levels down takes minutes.
        self._nodes += 1
        self._depth += 1
        line = self.get_mark().line + 1
        if self._nodes > MAX_NODES:
            raise Unreadable(
                self._file, f"holds more than {MAX_NODES} values (is this file one of ours?)", line
            )
        if self._depth > MAX_DEPTH:
            raise Unreadable(self._file, _TOO_DEEP, line)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


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


_SCALARS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": float,
    "tag:yaml.org,2002:str": str,
}


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
            raise Unreadable(self.file, _TOO_DEEP, line)
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
        read = _SCALARS.get(node.tag)
        try:
            if read is not None:
                return read(text)
        except ValueError:  # a tag that its text belies: `!!int many`
            pass
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
