"""JSON Schemas let editors complete and check our files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
from pydantic import TypeAdapter, ValidationError

import prfaas_lab.spec
from prfaas_lab.spec import dump, kind_of, load_scenario, schema
from prfaas_lab.spec.quantities import FROM_FILE, Rate
from prfaas_lab.spec.yaml_text import parse_document, read_document

ROOT = Path(__file__).parent.parent.parent

KINDS: list[Literal["topology", "scenario"]] = ["topology", "scenario"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_committed_schema_is_current(kind: Literal["topology", "scenario"]) -> None:
    committed = Path(prfaas_lab.spec.__file__).parent / "schemas" / f"{kind}.json"
    remedy = f"run: prfaas-lab schema {kind} > {committed}"
    assert json.loads(committed.read_text()) == schema(kind), remedy


def objects_of(part: Any) -> list[dict[str, Any]]:
    if isinstance(part, list):
        return [found for item in part for found in objects_of(item)]
    if not isinstance(part, dict):
        return []
    own = [part] if "properties" in part and part.get("type") == "object" else []
    return own + [found for item in part.values() for found in objects_of(item)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_says_what_it_means_and_unknown_ones_are_refused(
    kind: Literal["topology", "scenario"],
) -> None:
    for section in objects_of(schema(kind)):
        assert section["additionalProperties"] is False
        for key, value in section["properties"].items():
            described = "description" in value or "const" in value or key == "name"
            assert described, f"{section.get('title')}.{key} has no description"


def complaints(kind: Literal["topology", "scenario"], document: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema(kind))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_is_one(kind: Literal["topology", "scenario"]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(kind))


@pytest.mark.parametrize("path", [*ROOT.glob("topologies/*.yaml"), *ROOT.glob("scenarios/*.yaml")], ids=str)
def test_an_editor_finds_nothing_wrong_with_a_shipped_file(path: Path) -> None:
    assert complaints(kind_of(path), read_document(path).root) == []


@pytest.mark.parametrize("path", [*ROOT.glob("scenarios/*.yaml")], ids=str)
def test_an_editor_finds_nothing_wrong_with_a_resolved_scenario(path: Path) -> None:
    text = dump(load_scenario(path))
    assert complaints("scenario", parse_document(text, "resolved").root) == []


@pytest.mark.parametrize("stem", ["topology-unknown-keys", "topology-units", "topology-wrong-shapes"])
def test_an_editor_finds_the_mistakes_within_a_value(stem: str) -> None:
    path = Path(__file__).parent / "broken" / f"{stem}.yaml"
    assert complaints("topology", read_document(path).root)


@pytest.mark.parametrize("kind", KINDS)
def test_every_default_is_as_one_would_write_it(kind: Literal["topology", "scenario"]) -> None:
    whole = schema(kind)
    for section in objects_of(whole):
        for key, value in section["properties"].items():
            if "default" in value:
                validator = jsonschema.Draft202012Validator({**value, "$defs": whole["$defs"]})
                assert validator.is_valid(value["default"]), f"{section.get('title')}.{key}"


RATES = ["100Gbit", "1.5 Mbit", "100gbps", "5.Mbit", ".5Mbit", "1e3Mbit", "+1Mbit", 0]
NOT_RATES = ["100", "25ms", "-1Mbit", "Gbit", "1Xbit", "", 5, 1.5, True]


@pytest.mark.parametrize("value", RATES)
def test_an_editor_takes_the_rates_that_we_take(value: Any) -> None:
    adapter = TypeAdapter[float](Rate)
    jsonschema.validate(value, adapter.json_schema())
    adapter.validate_python(value, context=FROM_FILE)


@pytest.mark.parametrize("value", NOT_RATES)
def test_an_editor_refuses_the_rates_that_we_refuse(value: Any) -> None:
    adapter = TypeAdapter[float](Rate)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, adapter.json_schema())
    with pytest.raises(ValidationError):
        adapter.validate_python(value, context=FROM_FILE)
