"""Arguments of tools that clients repeat in headers, compared as a server of streamable HTTP does. Pure.

A server marks a parameter with `x-mcp-header`; its value then has to be in the header `Mcp-Param-…` too (2026-07-28,
streamable HTTP: custom headers from tool parameters). A server on stdio sees no headers, so they are compared before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

from toolbox_dtma.gateway.header_values import decode_header
from toolbox_dtma.gateway.skimming import Document, Members, Span, Steps, Want
from toolbox_dtma.gateway.strictjson import DECODER, NotJson, Repeated

PREFIX = "Mcp-Param-"
MAX_TOOLS = 1000
"""Of a page, and of all that is remembered."""
MAX_SCHEMA_BYTES = 128 * 1024
MAX_POSITIONS = 4096
"""Schemas within one schema."""
MAX_PARAMS = 64
"""Marked parameters of one tool."""
MAX_DEPTH = 32
_MARK = "x-mcp-header"
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
_TYPES = frozenset({"string", "integer", "boolean"})
_NUMBER = re.compile(r"-?[0-9]{1,400}(?:\.[0-9]{1,400})?(?:[eE][-+]?[0-9]{1,4})?")

# Keywords of JSON Schema 2020-12 that hold schemas: one, an array of them, or one for each of some names.
_ONE = (
    "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties")

_LISTING = Want({"result": Want({"tools": Want(elements=MAX_TOOLS), "nextCursor": None})})
_TOOL = Want({"name": None, "inputSchema": None})


@dataclass(frozen=True, slots=True)
class Param:
    """A marked parameter."""

    path: tuple[str, ...]
    """Names of properties, from the arguments on."""
    header: str
    """What follows the prefix."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a page of tools/list says."""

    tools: Mapping[str, tuple[Param, ...]]
    """Every tool of it, most with nothing marked."""
    cursor: str | None


def page(answer: bytes) -> Steps[Page]:
    """Read an answer to tools/list. What is none has no tools."""
    document = Document(answer, strict=False)
    tools: dict[str, tuple[Param, ...]] = {}
    try:
        start = yield from document.space(0)
        found, _ = yield from document.wanted(start, 0, _LISTING)
        result = found.values.get("result") if isinstance(found, Members) else None
        listed = result.values.get("tools") if isinstance(result, Members) else None
        for each in listed if isinstance(listed, list) else ():
            tool, _ = yield from document.wanted(each.start, 3, _TOOL)
            name, schema = (
                (tool.values.get(member) for member in ("name", "inputSchema"))
                if isinstance(tool, Members)
                else (None, None)
            )
            named = document.decode(name) if isinstance(name, Span) else None
            if isinstance(named, str):
                tools[named] = _marked(document, schema) if isinstance(schema, Span) else ()
        more = result.values.get("nextCursor") if isinstance(result, Members) else None
        cursor = document.decode(more) if isinstance(more, Span) else None
    except NotJson:
        return Page({}, None)
    return Page(tools, cursor if isinstance(cursor, str) else None)


def _marked(document: Document, schema: Span) -> tuple[Param, ...]:
    raw = document.raw[schema.start : schema.end]
    # Most schemas have none: an escape is the only other way to spell it.
    if len(raw) > MAX_SCHEMA_BYTES or (_MARK.encode() not in raw and b"\\u" not in raw):
        return ()
    try:
        return params_of(DECODER.decode(raw.decode()))
    except (ValueError, RecursionError):
        return ()


def params_of(schema: Any) -> tuple[Param, ...]:
    """What a schema marks. Nothing, if any mark is where or as it must not be: clients then drop the tool."""
    params: list[Param] = []
    for count, (path, position) in enumerate(_positions(schema)):
        if count >= MAX_POSITIONS:
            return ()
        if _MARK not in position:
            continue
        header = position[_MARK]
        if not path or not isinstance(header, str) or not _TOKEN.fullmatch(header) or len(path) > MAX_DEPTH:
            return ()
        if position.get("type") not in _TYPES or isinstance(position, Repeated) or len(params) == MAX_PARAMS:
            return ()
        params.append(Param(path, header))
    names = {param.header.lower() for param in params}
    return tuple(params) if len(names) == len(params) else ()


def _positions(root: Any) -> Iterator[tuple[tuple[str, ...] | None, dict[str, Any]]]:
    """Every schema in a schema; with its path, if only `properties` lead there."""
    pending: list[tuple[tuple[str, ...] | None, Any]] = [((), root)]
    while pending:
        path, value = pending.pop()
        if not isinstance(value, dict):
            continue
        schema = cast("dict[str, Any]", value)
        yield path, schema
        properties = schema.get("properties")
        if isinstance(properties, dict):
            for name, inner in cast("dict[str, Any]", properties).items():
                pending.append((None if path is None else (*path, name), inner))
        pending += [(None, schema[keyword]) for keyword in _ONE if keyword in schema]
        for keyword in _SEVERAL:
            several = schema.get(keyword)
            pending += [(None, each) for each in cast("list[Any]", several)] if isinstance(several, list) else []
        for keyword in _NAMED:
            named = schema.get(keyword)
            if isinstance(named, dict):
                pending += [(None, each) for each in cast("dict[str, Any]", named).values()]


def mismatch(call: bytes, params: Sequence[Param], headers: Mapping[str, Sequence[str]]) -> Steps[str | None]:
    """What is wrong with the headers of a tools/call, whose body was read before; None if nothing is.

    `headers`: all values of each, by names in lower case.
    """
    document = Document(call, strict=False)
    start = yield from document.space(0)
    found, _ = yield from document.wanted(start, 0, Want({"params": Want({"arguments": _wanted(params)})}))
    plain: Any = document.plain(found)
    arguments: Any = plain.get("params", {}).get("arguments") if isinstance(plain.get("params"), dict) else None
    for param in params:
        problem = _compare(param, arguments, headers.get(f"{PREFIX}{param.header}".lower(), ()))
        if problem is not None:
            return f"{PREFIX}{param.header} {problem}"
    return None


def _wanted(params: Sequence[Param]) -> Want:
    """The arguments that are marked, each by its path."""
    tree: dict[str, Any] = {}
    for param in params:
        inner = tree
        for name in param.path[:-1]:
            inner = inner.setdefault(name, {}) or inner[name]
        inner.setdefault(param.path[-1], {})
    return _want_of(tree)


def _want_of(tree: dict[str, Any]) -> Want:
    return Want({name: _want_of(inner) if inner else None for name, inner in tree.items()})


_ABSENT = object()


def _compare(param: Param, arguments: Any, values: Sequence[str]) -> str | None:
    where = ".".join(param.path)
    value = arguments
    for name in param.path:
        if isinstance(value, Repeated):
            return f"mirrors the argument {where!r}, which is in the body more than once"
        value = cast("dict[str, Any]", value).get(name, _ABSENT) if isinstance(value, dict) else _ABSENT
    if len(values) > 1:
        return "is present more than once"
    # A value that has no form as a header is left out by clients, as one that is not there.
    if not isinstance(value, str | int | float):
        return f"is present, but the argument {where!r} is not" if values else None
    if not values:
        return f"is missing, but the argument {where!r} is present"
    said = decode_header(values[0])
    if said is None or not _same(said, value):
        return f"does not match the argument {where!r}"
    return None


def _same(said: str, value: str | float | bool) -> bool:
    if isinstance(value, bool):
        return said == ("true" if value else "false")
    if isinstance(value, str):
        return said == value
    # However it is written: 42 and 42.0 are one number.
    if _NUMBER.fullmatch(said) is None or value in (float("inf"), float("-inf")):
        return False
    return Decimal(said) == (Decimal(value) if isinstance(value, int) else Decimal(repr(value)))
