"""Tool lists on their way to a restricted connection, recognised by shape and cut without touching the rest. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, cast

from toolbox_dtma.gateway.strictjson import DECODER, NotJson, Repeated

MAX_TTL_MS = 5000
_SPACE = re.compile(r"[ \t\n\r]*")
_CACHE_MEMBERS = ("cacheScope", "ttlMs")

Exposes = Callable[[str], bool]


class Undecidable(Exception):
    """Whether a hidden tool is inside cannot be told, so none of it may leave."""


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
        cutter = _Cutter(text, exposes)
        end = cutter.document(_skip(text, 0))
    except (UnicodeDecodeError, json.JSONDecodeError, NotJson, StopIteration, RecursionError) as error:
        raise Undecidable(f"not JSON: {type(error).__name__}") from None
    if _skip(text, end) != len(text):
        raise Undecidable("data after the document")
    return _edited(text, cutter.edits).encode() if cutter.edits else raw


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


class _Cutter:
    """Walks a document down to its tools, decoding every value once. Positions are indexes into the text.

    Each method takes the position of a value and returns the one after it.
    """

    def __init__(self, text: str, exposes: Exposes):
        self._text = text
        self._exposes = exposes
        self.edits: list[tuple[int, int, str]] = []
        """(start, end, replacement) of every `result` that changes, in order."""

    def document(self, start: int) -> int:
        """A message or an array of messages."""
        if self._text[start : start + 1] != "[":
            return self._message(start)
        return self._each(start, "[", "]", self._message)

    def _message(self, start: int) -> int:
        if self._text[start : start + 1] != "{":
            return self._decode(start)[1]
        seen: set[str] = set()

        def member(position: int) -> int:
            key, position = self._key(position)
            if key != "result":
                return self._decode(position)[1]
            _once(key, seen)
            return self._result(position)

        return self._each(start, "{", "}", member)

    def _result(self, start: int) -> int:
        if self._text[start : start + 1] != "{":
            return self._decode(start)[1]
        seen: set[str] = set()
        kept: list[str] = []
        values: dict[str, Any] = {}
        is_list = False

        def member(position: int) -> int:
            nonlocal is_list
            key, begin = self._key(position)
            if key == "tools":
                _once(key, seen)
                is_list = self._text[begin : begin + 1] == "["
            if key == "tools" and is_list:
                shown, end = self._tools(begin)
                kept.append(f"{json.dumps(key)}:[{','.join(shown)}]")
            else:
                values[key], end = self._decode(begin)
                if key not in _CACHE_MEMBERS:
                    kept.append(f"{json.dumps(key)}:{self._text[begin:end]}")
            return end

        end = self._each(start, "{", "}", member)
        if is_list:
            # Results of a revision without caching have none of these members and get none.
            if {"resultType", *_CACHE_MEMBERS} & values.keys():
                kept += ('"cacheScope":"private"', f'"ttlMs":{_ttl(values.get("ttlMs"))}')
            self.edits.append((start, end, "{" + ",".join(kept) + "}"))
        return end

    def _tools(self, start: int) -> tuple[list[str], int]:
        """The texts of the tools that may be seen, and the position after the array."""
        shown: list[str] = []

        def element(position: int) -> int:
            tool, end = self._decode(position)
            if _is_exposed(tool, self._exposes):
                shown.append(self._text[position:end])
            return end

        return shown, self._each(start, "[", "]", element)

    def _each(self, start: int, opening: str, closing: str, item: Callable[[int], int]) -> int:
        """Read a container, each of its items with `item`."""
        text = self._text
        if text[start : start + 1] != opening:
            raise Undecidable("a container is missing")
        position = _skip(text, start + 1)
        if text[position : position + 1] == closing:
            return position + 1
        while True:
            position = _skip(text, item(position))
            separator = text[position : position + 1]
            if separator == closing:
                return position + 1
            if separator != ",":
                raise Undecidable("a comma is missing")
            position = _skip(text, position + 1)

    def _key(self, position: int) -> tuple[str, int]:
        """A member's name and the position of its value."""
        if self._text[position : position + 1] != '"':
            raise Undecidable("a member name is missing")
        key, position = self._decode(position)
        position = _skip(self._text, position)
        if self._text[position : position + 1] != ":":
            raise Undecidable("a colon is missing")
        return key, _skip(self._text, position + 1)

    def _decode(self, position: int) -> tuple[Any, int]:
        return DECODER.raw_decode(self._text, position)


def _once(key: str, seen: set[str]) -> None:
    if key in seen:
        raise Undecidable(f"{key} is there twice")
    seen.add(key)


def _ttl(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return 0
    return int(min(value, MAX_TTL_MS))


def _is_exposed(tool: Any, exposes: Exposes) -> bool:
    if not isinstance(tool, dict) or isinstance(tool, Repeated):
        return False
    name = cast("dict[str, Any]", tool).get("name")
    return isinstance(name, str) and exposes(name)
