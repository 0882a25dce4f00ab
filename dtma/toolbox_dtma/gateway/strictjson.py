"""JSON as policy needs it: one decoder that notices what lenient parsers disagree about."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

BOM = b"\xef\xbb\xbf"
MAX_DEPTH = 64
"""Deepest nesting of arrays and objects; the outermost container is level 1."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class Repeated(dict[str, Any]):
    """An object in which a member name occurs more than once; the last value is kept."""


class NotJson(ValueError):
    """The text is not JSON as RFC 8259 has it, or not safely so; the message says why."""


def with_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` that notices members that are there twice."""
    members = dict(pairs)
    return members if len(members) == len(pairs) else Repeated(members)


def refuse_constant(name: str) -> Any:
    """`parse_constant`. Raises `NotJson`."""
    raise NotJson(f"{name} is not JSON")


def _integer(digits: str) -> int | float:
    # Python refuses to convert thousands of digits, which are infinite to a float; no policy decision depends on them.
    return int(digits) if len(digits) <= 400 else float(digits)


DECODER = json.JSONDecoder(object_pairs_hook=with_repeats, parse_constant=refuse_constant, parse_int=_integer)


def loads(raw: bytes) -> Any:
    """Decode a whole document. Raises `NotJson` for anything two parsers might read differently."""
    if raw.startswith(BOM):
        raise NotJson("a byte order mark is not allowed")
    try:
        text = raw.decode()
        document = DECODER.decode(text)
    except UnicodeDecodeError:
        raise NotJson("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise NotJson(f"nested deeper than {MAX_DEPTH} levels") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and deeper_than(document, MAX_DEPTH):
        raise NotJson(f"nested deeper than {MAX_DEPTH} levels")
    if _SURROGATE_ESCAPE.search(text) and any(not encodable(string) for string in _strings(document)):
        raise NotJson("a lone surrogate is not a character")
    return document


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(cast("dict[str, Any]", value).values())
    return cast("list[Any]", value) if isinstance(value, list) else []


def deeper_than(document: Any, limit: int) -> bool:
    """Whether a decoded document is nested deeper than `limit`."""
    level: list[Any] = [document] if isinstance(document, dict | list) else []
    for _ in range(limit):
        level = [child for value in level for child in _children(value) if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _strings(document: Any) -> Iterator[str]:
    pending: list[Any] = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            members = cast("Mapping[str, Any]", value)
            yield from members.keys()
            pending.extend(members.values())
        elif isinstance(value, list):
            pending.extend(cast("list[Any]", value))


def encodable(string: str) -> bool:
    """Whether a string has no lone surrogate."""
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True
