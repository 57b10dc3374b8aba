"""However a file is mangled, it loads or it is told what is wrong: nothing else ever comes out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from prfaas_lab.errors import SpecError
from prfaas_lab.spec import dump, load_scenario

ROOT = Path(__file__).parent.parent.parent
SHIPPED = [dump(load_scenario(path)) for path in sorted((ROOT / "scenarios").glob("*.yaml"))]
NAMES = ["name", "kind", "links", "wan", "<rate>", "[key]", "steps", "prfaas-east", "enginse", "x" * 60, ""]
WORDS = ["100Gbit", "5ms", "50%", "auto", "tcp", "onoff", "steps", "csv", "fixed", "wan", "local", "../x"]
KEYS = st.sampled_from(NAMES)
VALUES = st.recursive(
    st.sampled_from([None, True, 0, -1, 1.5, 10**30, "", "x", "\0", "é", "a\nb", *WORDS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def containers(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return ([value] if inner else []) + [found for item in inner for found in containers(item)]


def mangle(data: st.DataObject, root: Any) -> None:
    """One change somewhere: a value replaced, a key renamed, added or dropped."""
    where = data.draw(st.sampled_from(containers(root)))
    place = data.draw(st.sampled_from(list(where) if isinstance(where, dict) else range(len(where))))
    match data.draw(st.sampled_from(["replace", "drop", "rename"])):
        case "replace":
            where[place] = data.draw(VALUES)
        case "drop":
            del where[place]
        case "rename" if isinstance(where, dict):
            where[data.draw(KEYS)] = where.pop(place)


@given(st.data(), st.sampled_from(SHIPPED), st.integers(1, 4))
@settings(max_examples=100, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.reuse])
def test_a_mangled_scenario_loads_or_is_told_its_mistakes(
    tmp_path: Path, data: st.DataObject, text: str, times: int
) -> None:
    root = yaml.safe_load(text)
    for _ in range(times):
        if containers(root):
            mangle(data, root)
    path = tmp_path / "mangled.yaml"
    path.write_text(yaml.safe_dump(root, allow_unicode=True))
    try:
        load_scenario(path)
    except SpecError as error:
        for problem in error.problems:
            assert problem.startswith(str(tmp_path))
            assert not re.search(r"pydantic|Input should|\[type=|Error", problem), problem
            assert problem.endswith(")"), problem
            assert "\n" not in problem


@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError):
        load_scenario(path)


@given(st.text(alphabet=" \n\t:-[]{}#&*!|>'\"%@,?ab1.~<", max_size=60))
def test_any_yaml_like_text_is_refused(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    path.write_text(content)
    with pytest.raises(SpecError):
        load_scenario(path)
