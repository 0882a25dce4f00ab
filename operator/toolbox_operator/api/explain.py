"""What is wrong with a spec, in the words of the person who wrote it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

_SHOWN = 5
"""Mistakes listed; the rest are counted."""


def explain(model: type[BaseModel], error: ValidationError, root: str = "spec") -> str:
    """One line: each field that is wrong, and what to change.

    Values are not repeated: they may be secrets.
    """
    details = error.errors(include_url=False, include_input=False)
    lines = [_line(model, root, detail) for detail in details[:_SHOWN]]
    if len(details) > _SHOWN:
        lines.append(f"and {len(details) - _SHOWN} more")
    return "; ".join(lines)


def _line(model: type[BaseModel], root: str, detail: Mapping[str, Any]) -> str:
    kind: str = detail["type"]
    say = _TEXTS.get(kind)
    advice = say(detail.get("ctx") or {}) if say else "not a valid value for this field"
    if kind == "extra_forbidden":
        advice = f"unknown field{_suggestion(model, detail['loc'])}"
    return f"{_path(root, detail['loc'])}: {advice}"


def _path(root: str, loc: tuple[int | str, ...]) -> str:
    return root + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)


def _suggestion(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    known = _fields(_json_schema(model), loc[:-1])
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


@cache
def _json_schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(by_alias=True)


def _fields(schema: dict[str, Any], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the fields at a place of a JSON schema."""
    definitions: dict[str, Any] = schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        for choice in node.get("anyOf", ()):
            if choice.get("type") != "null":
                return resolve(choice)
        reference: str | None = node.get("$ref")
        return resolve(definitions[reference.rsplit("/", 1)[1]]) if reference else node

    node = resolve(schema)
    for step in loc:
        node = resolve(node["items"] if isinstance(step, int) else node["properties"][step])
    return sorted(node.get("properties", {}))


_TEXTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "required; set it",
    "string_type": lambda _: "must be text; put it in quotes",
    "bool_type": lambda _: "must be true or false, without quotes",
    "int_type": lambda _: "must be a whole number, without quotes",
    "int_parsing_size": lambda _: "is out of range",
    "int_from_float": lambda _: "must be a whole number",
    "tuple_type": lambda _: "must be a list",
    "dict_type": lambda _: "must be an object with keys and values",
    "model_type": lambda _: "must be an object with fields",
    "model_attributes_type": lambda _: "must be an object with fields",
    "enum": lambda c: f"must be one of {_choices(c['expected'])}",
    "literal_error": lambda c: f"must be one of {_choices(c['expected'])}",
    "greater_than_equal": lambda c: f"must be at least {c['ge']}",
    "less_than_equal": lambda c: f"must be at most {c['le']}",
    "string_too_short": lambda c: f"must have at least {c['min_length']} characters",
    "string_too_long": lambda c: f"must have at most {c['max_length']} characters",
    "too_long": lambda c: f"must have at most {c['max_length']} entries",
    "string_pattern_mismatch": lambda c: f"must match {c['pattern']}",
    "datetime_type": lambda _: "must be a time, like 2027-01-01T00:00:00Z",
    "value_error": lambda c: str(c["error"]),
}


def _choices(expected: str) -> str:
    return expected.replace("'", "").replace(" or ", ", ")
