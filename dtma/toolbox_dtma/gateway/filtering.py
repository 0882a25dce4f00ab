"""Tool lists on their way to a restricted connection, recognised by shape and cut without touching the rest. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from toolbox_dtma.gateway.strictjson import DECODER, NotJson, Repeated

MAX_TTL_MS = 5000
_SPACE = re.compile(r"[ \t\n\r]*")
_CACHE_MEMBERS = ("cacheScope", "ttlMs")

Exposes = Callable[[str], bool]


class Undecidable(Exception):
    """Whether a hidden tool is inside cannot be told, so none of it may leave."""


@dataclass(frozen=True, slots=True)
class _Span:
    """A value inside the text."""

    key: str
    start: int
    end: int
    value: Any


def filter_lists(raw: bytes, exposes: Exposes) -> bytes:
    """The JSON document `raw` without the tools that `exposes` refuses.

    Looks at a message, or each message of an array; what holds no array `result.tools` stays byte for byte.
    Raises `Undecidable` for anything that is not one JSON document.
    """
    if b"tools" not in raw and b"\\u" not in raw and b"\0" not in raw:
        # Without an escape and without UTF-16 there is no other spelling of the member: nothing to decide.
        return raw
    try:
        text = raw.decode()
        start = _skip(text, 0)
        edits = list(
            _elements_edits(text, start, exposes)
            if text[start : start + 1] == "["
            else _message_edits(text, start, exposes)
        )
        _, end = DECODER.raw_decode(text, start)
    except (UnicodeDecodeError, json.JSONDecodeError, NotJson, StopIteration, RecursionError) as error:
        raise Undecidable(f"not JSON: {type(error).__name__}") from None
    if _skip(text, end) != len(text):
        raise Undecidable("data after the document")
    return _edited(text, edits).encode() if edits else raw


def _edited(text: str, edits: list[tuple[int, int, str]]) -> str:
    parts: list[str] = []
    position = 0
    for start, end, replacement in edits:
        parts += (text[position:start], replacement)
        position = end
    return "".join((*parts, text[position:]))


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _elements_edits(text: str, start: int, exposes: Exposes) -> Iterator[tuple[int, int, str]]:
    for element in _elements(text, start):
        yield from _message_edits(text, element.start, exposes)


def _message_edits(text: str, start: int, exposes: Exposes) -> Iterator[tuple[int, int, str]]:
    """(start, end, replacement) for the one value of a message that changes."""
    if text[start : start + 1] != "{":
        return
    result = _one(_members(text, start), "result")
    if result is None or not isinstance(result.value, dict):
        return
    members = list(_members(text, result.start))
    tools = _one(iter(members), "tools")
    if tools is None or not isinstance(tools.value, list):
        return
    yield result.start, result.end, _filtered(text, members, tools, exposes)


def _filtered(text: str, members: list[_Span], tools: _Span, exposes: Exposes) -> str:
    kept = [text[tool.start : tool.end] for tool in _elements(text, tools.start) if _is_exposed(tool.value, exposes)]
    values = {span.key: span.value for span in members}
    parts: list[str] = []
    for span in members:
        if span.key not in _CACHE_MEMBERS:
            value = f"[{','.join(kept)}]" if span is tools else text[span.start : span.end]
            parts.append(f"{json.dumps(span.key)}:{value}")
    # Results of a revision without caching have none of these members and get none.
    if {"resultType", *_CACHE_MEMBERS} & values.keys():
        parts += ('"cacheScope":"private"', f'"ttlMs":{_ttl(values.get("ttlMs"))}')
    return "{" + ",".join(parts) + "}"


def _ttl(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return 0
    return int(min(value, MAX_TTL_MS))


def _is_exposed(tool: Any, exposes: Exposes) -> bool:
    if not isinstance(tool, dict) or isinstance(tool, Repeated):
        return False
    name = cast("dict[str, Any]", tool).get("name")
    return isinstance(name, str) and exposes(name)


def _one(members: Iterator[_Span], key: str) -> _Span | None:
    found = [member for member in members if member.key == key]
    if len(found) > 1:
        raise Undecidable(f"{key} is there twice")
    return found[0] if found else None


def _decode(text: str, position: int) -> tuple[Any, int]:
    """The value at `position` and the position after it."""
    return DECODER.raw_decode(text, position)


def _members(text: str, start: int) -> Iterator[_Span]:
    """Members of the object at `start`, with the positions of their values."""
    position = _skip(text, start + 1)
    if text[position : position + 1] == "}":
        return
    while True:
        if text[position : position + 1] != '"':
            raise Undecidable("a member name is missing")
        key, position = _decode(text, position)
        position = _skip(text, position)
        if text[position : position + 1] != ":":
            raise Undecidable("a colon is missing")
        begin = _skip(text, position + 1)
        value, position = _decode(text, begin)
        yield _Span(key, begin, position, value)
        position = _skip(text, position)
        if text[position : position + 1] == "}":
            return
        position = _after_comma(text, position)


def _elements(text: str, start: int) -> Iterator[_Span]:
    """Elements of the array at `start`."""
    position = _skip(text, start + 1)
    if text[position : position + 1] == "]":
        return
    while True:
        value, end = _decode(text, position)
        yield _Span("", position, end, value)
        position = _skip(text, end)
        if text[position : position + 1] == "]":
            return
        position = _after_comma(text, position)


def _after_comma(text: str, position: int) -> int:
    if text[position : position + 1] != ",":
        raise Undecidable("a comma is missing")
    return _skip(text, position + 1)
