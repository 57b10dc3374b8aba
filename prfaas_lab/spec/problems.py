"""Validates a document and says every mistake in it in words for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from prfaas_lab.spec.document import Document, Items, PathInFile, Problem, Section
from prfaas_lab.spec.quantities import FROM_FILE
from prfaas_lab.spec.topology import Misfit, Spec

SpecT = TypeVar("SpecT", bound=Spec)


def validate(model: type[SpecT], document: Document) -> tuple[SpecT | None, list[Problem]]:
    """The document as a model (None when it cannot be one), and everything wrong with it.

    Unknown keys are put right first (renamed to the key that was meant, or dropped), so that one
    typo neither hides the mistakes below it nor makes the key it stands for look missing.
    """
    problems = list(document.problems)
    while True:
        try:
            return model.model_validate(document.root, context=FROM_FILE), problems
        except ValidationError as error:
            details = error.errors(include_url=False)
        unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
        if not unknown:
            return None, problems + [
                problem for detail in details for problem in _say(model, document, detail)
            ]
        for detail in unknown:
            path = path_in_file(document.root, detail["loc"])
            known = _known_keys(model, document.root, path[:-1])
            problems.append(document.problem(path, _unknown_key(str(path[-1]), known)))
            _put_right(_at(document.root, path[:-1]), str(path[-1]), known)


def path_in_file(root: Section, loc: Sequence[str | int]) -> PathInFile:
    """Pydantic's location without the union tags and markers that the file does not have."""
    path: list[str | int] = []
    here: Any = root
    tag_passed = False
    for part in loc:
        if isinstance(part, str) and part[:1] in ("<", "["):  # our union tags; pydantic's "[key]"
            continue
        if isinstance(here, Mapping) and not tag_passed and here.get("kind", object()) == part:
            tag_passed = True  # a discriminated union names its arm once
            continue
        path.append(part)
        tag_passed = False
        try:
            here = here[part]
        except (LookupError, TypeError):
            here = None
    return tuple(path)


def _at(root: Any, path: PathInFile) -> Any:
    for part in path:
        root = root[part]
    return root


def _put_right(section: Section, key: str, known: Iterable[str]) -> None:
    line, value = section.lines.pop(key), section.pop(key)
    meant = _nearest(key, [name for name in known if name not in section])
    if meant is not None:
        section.lines[meant], section[meant] = line, value


def _nearest(word: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def _unknown_key(key: str, known: Sequence[str]) -> str:
    near = _nearest(key, known)
    remedy = f"did you mean {near}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {_quoted(key)} ({remedy})"


# -- what the model allows at a path ----------------------------------------------------------


def _known_keys(model: type[BaseModel], root: Section, path: PathInFile) -> list[str]:
    arms = _arms(model, root, path)
    return [key for arm in arms for key in arm.model_fields]


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


def _field(model: type[BaseModel], root: Section, path: PathInFile) -> FieldInfo | None:
    if not path or not isinstance(path[-1], str):
        return None
    arms = _arms(model, root, path[:-1])
    return arms[0].model_fields.get(path[-1]) if arms else None


# -- in words ---------------------------------------------------------------------------------


def _say(model: type[BaseModel], document: Document, detail: ErrorDetails) -> list[Problem]:
    path = path_in_file(document.root, detail["loc"])
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, Misfit):
        return [document.problem((*path, *below), text) for below, text in error.problems]
    text = _text(model, document.root, path, detail)
    return [document.problem(path[:-1] if detail["type"] == "missing" else path, text)]


def _text(model: type[BaseModel], root: Section, path: PathInFile, detail: ErrorDetails) -> str:
    kind, value, ctx = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "missing":
        if path and isinstance(path[-1], int):
            return f"item {path[-1] + 1} is missing (give it too)"
        return f"missing key {path[-1]!r} (add {_example(_field(model, root, path), str(path[-1]))})"
    if kind == "union_tag_not_found" and isinstance(value, Mapping):
        return f"missing key 'kind' (write kind: {_one_of(_kinds(_arms(model, root, path)))})"
    if value is None and kind != "value_error":
        return f"has no value (write {_example(_field(model, root, path), str(path[-1]))})"
    if kind == "union_tag_invalid":
        known = [tag.strip("'") for tag in str(ctx["expected_tags"]).split(", ")]
        near = _nearest(str(ctx["tag"]), known)
        hint = f"did you mean {near}? " if near else ""
        return f"unknown kind {_quoted(ctx['tag'])} ({hint}write {_one_of(known)})"
    if kind == "string_pattern_mismatch":
        remedy = "use lower-case letters, digits and dashes, a letter first, at most 24"
        return f"{_quoted(value)} is no name ({remedy})"
    if kind in _TEXTS:
        return f"{_quoted(value)} {_TEXTS[kind]}"
    if kind in _BOUNDS:
        return f"{_quoted(_at(root, path))} {_BOUNDS[kind].format(**ctx)}"
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
