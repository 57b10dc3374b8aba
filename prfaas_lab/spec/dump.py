"""Writes a resolved scenario as one file that runs again, and JSON Schemas for editors."""

from __future__ import annotations

from typing import Any, Literal

import yaml
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from prfaas_lab.spec.scenario import Resolved, Scenario
from prfaas_lab.spec.topology import Spec, Topology
from prfaas_lab.spec.yaml_text import add_scalars


def dump(resolved: Resolved) -> str:
    """The scenario as YAML, its topology written in place and every default written out.

    Reading it gives an equal scenario: quantities are text with units, without loss.
    """
    values = resolved.scenario.model_dump(mode="json")
    head = f"# Resolved from {resolved.source!r}. It runs as it is: prfaas-lab scenario THIS-FILE\n"
    return head + yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def schema(kind: Literal["topology", "scenario"]) -> dict[str, Any]:
    """The JSON Schema of a file, for editors."""
    models: dict[str, type[Spec]] = {"topology": Topology, "scenario": Scenario}
    body = models[kind].model_json_schema(schema_generator=_EditorSchema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **body}


class _EditorSchema(GenerateJsonSchema):
    """Without titles that repeat the key, and with defaults as one would write them."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        described = super().default_schema(schema)
        text = schema["schema"].get("serialization", {}).get("function")
        if text is not None and isinstance(described.get("default"), int | float):
            described["default"] = text(described["default"])
        return described


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either YAML 1.1 or our loader would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


add_scalars(_Dumper)
