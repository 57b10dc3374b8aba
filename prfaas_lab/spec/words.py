"""Pydantic's errors in words for people: what is wrong, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from prfaas_lab.spec.document import Items, PathInFile, Section, value_at


def say(model: type[BaseModel], root: Mapping[str, Any], path: PathInFile, detail: ErrorDetails) -> str:
    """One error of a model's validation; `path` is where it is in the file."""
    kind, value, ctx = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "missing":
        if path and isinstance(path[-1], int):
            return f"item {path[-1] + 1} is missing (give it too)"
        return f"missing key {path[-1]!r} (add {_example(_field(model, root, path), str(path[-1]))})"
    if kind == "union_tag_not_found" and isinstance(value, Mapping):
        return f"missing key 'kind' (write kind: {_one_of(_kinds(_arms(model, root, path)))})"
    if value is None and kind != "value_error":
        field = _field(model, root, path)
        return (
            f"has no value (write {_example(field, str(path[-1]))})" if field else "has no value (write one)"
        )
    if kind == "union_tag_invalid":
        known = [tag.strip("'") for tag in str(ctx["expected_tags"]).split(", ")]
        near = nearest(str(ctx["tag"]), known)
        hint = f"did you mean {near}? " if near else ""
        return f"unknown kind {_quoted(ctx['tag'])} ({hint}write {_one_of(known)})"
    if kind == "string_pattern_mismatch":
        remedy = "use lower-case letters, digits and dashes, a letter first, at most 24"
        return f"{_quoted(value)} is no name ({remedy})"
    if kind in _TEXTS:
        return f"{_quoted(value)} {_TEXTS[kind]}"
    if kind in _BOUNDS:
        return f"{_quoted(value_at(root, path))} {_BOUNDS[kind].format(**ctx)}"
    if kind == "too_long":
        return f"has {_items(ctx['actual_length'])} (give at most {ctx['max_length']})"
    if kind == "too_short":
        return f"has {_items(ctx['actual_length'])} (give at least {ctx['min_length']})"
    if kind == "literal_error":
        return f"{_quoted(value)} is not known here (write {str(ctx['expected']).replace(chr(39), '')})"
    return detail["msg"].removeprefix("Value error, ")


_TEXTS = {
    "model_type": "is not a mapping (write key: value lines below it)",
    "model_attributes_type": "is not a mapping (write key: value lines below it)",
    "union_tag_not_found": "is not a mapping (write key: value lines below it, kind: first)",
    "dict_type": "is not a mapping (write name: value lines below it)",
    "tuple_type": "is not a list (write [a, b], or - items)",
    "int_type": "is not a whole number (write digits only)",
    "float_type": "is not a number (write digits, without a unit)",
    "finite_number": "is not a finite number (write digits, without a unit)",
    "bool_type": "is neither true nor false (write one of them)",
    "string_type": "is not text (write words, or quote it)",
    "string_too_short": "is empty (write it out)",
}
_BOUNDS = {
    "greater_than": "is too small (must be more than {gt:.12g})",
    "greater_than_equal": "is too small (must be at least {ge:.12g})",
    "less_than": "is too large (must be less than {lt:.12g})",
    "less_than_equal": "is too large (must be at most {le:.12g})",
}


def _example(field: FieldInfo | None, key: str) -> str:
    """How a key could be written: `rate: 2/s`."""
    if field is None:
        return f"{key}:"
    for metadata in field.metadata:
        schema = getattr(metadata, "json_schema", None) or {}
        if schema.get("examples"):
            return f"{key}: {schema['examples'][0]}"
    if get_origin(field.annotation) is Literal:
        return f"{key}: {_one_of(get_args(field.annotation))}"
    if field.examples:
        return f"{key}: {field.examples[0]}"
    return f"{key}: ..., that is: {field.description}" if field.description else f"{key}: ..."


def _items(count: int) -> str:
    return "no items" if count == 0 else "1 item" if count == 1 else f"{count} items"


def _one_of(words: Iterable[Any]) -> str:
    *most, last = map(str, words)
    return f"{', '.join(most)} or {last}" if most else last


def _quoted(value: object) -> str:
    if isinstance(value, Section | dict):
        return "a mapping"
    if isinstance(value, Items | list | tuple):
        return "a list"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return repr(text if len(text) <= 40 else text[:37] + "...")


def unknown_key(key: str, known: Sequence[str], below: Sequence[str] = ()) -> str:
    """A key that a section does not have, and the one that was probably meant: of its own, or `below` it."""
    near = nearest(key, known) or next((path for path in below if path.endswith(f".{key}")), None)
    remedy = f"did you mean {near}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {_quoted(key)} ({remedy})"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that looks most like a given one, if any does."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return near[0] if near else None


# -- what the model allows at a path ----------------------------------------------------------


def known_keys(model: type[BaseModel], root: Section, path: PathInFile) -> list[str]:
    """The keys that the model allows in the section at a path."""
    arms = _arms(model, root, path)
    return [key for arm in arms for key in arm.model_fields]


def keys_below(model: type[BaseModel], root: Section, path: PathInFile) -> list[str]:
    """The keys of the sections that the model allows in that one: `cache.memory`."""
    return [
        f"{name}.{key}"
        for arm in _arms(model, root, path)
        for name, field in arm.model_fields.items()
        for inner in _arms(field.annotation, None, ())
        for key in inner.model_fields
    ]


def _arms(annotation: Any, value: Any, path: PathInFile) -> list[type[BaseModel]]:
    """The models that the value at a path may be: one, unless a union's `kind` is not known."""
    if get_origin(annotation) is Annotated:
        return _arms(get_args(annotation)[0], value, path)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not path:
            return [annotation]
        field = annotation.model_fields.get(str(path[0]))
        return _arms(field.annotation, _step(value, path[0]), path[1:]) if field else []
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (dict, tuple):
        if not path:
            return []
        inner = arguments[-1] if origin is dict else arguments[0]
        return _arms(inner, _step(value, path[0]), path[1:])
    if origin is not None and origin is not Literal:
        return [arm for option in arguments if _is_kind(option, value) for arm in _arms(option, value, path)]
    return []


def _is_kind(option: Any, value: Any) -> bool:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    return kind is None or kind in _kinds([option]) or not _kinds([option])


def _kinds(arms: Iterable[Any]) -> list[str]:
    fields = [arm.model_fields["kind"] for arm in arms if "kind" in getattr(arm, "model_fields", {})]
    return [kind for field in fields for kind in get_args(field.annotation)]


def _step(value: Any, part: str | int) -> Any:
    try:
        return value[part]
    except (LookupError, TypeError):
        return None


def _field(model: type[BaseModel], root: Mapping[str, Any], path: PathInFile) -> FieldInfo | None:
    if not path or not isinstance(path[-1], str):
        return None
    arms = _arms(model, root, path[:-1])
    return arms[0].model_fields.get(path[-1]) if arms else None
