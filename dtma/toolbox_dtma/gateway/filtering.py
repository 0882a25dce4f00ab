"""Lists on their way to a restricted connection, recognised by shape and cut without touching the rest. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from toolbox_dtma.gateway.definitions import approves
from toolbox_dtma.gateway.strictjson import DECODER, NotJson, Repeated
from toolbox_dtma.gateway.view import View

MAX_TTL_MS = 5000
_SPACE = re.compile(r"[ \t\n\r]*")
_CACHE_MEMBERS = ("cacheScope", "ttlMs")

Exposes = Callable[[str], bool]
Shown = Callable[[str, str], str | None]
"""From the name and the text of an element to the text that is passed on; None hides it."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A kind of list: the member of `result` that holds it, and the member of its elements that names them."""

    member: str
    name: str
    exposes: Exposes
    shown: Shown | None = None
    """What of an exposed element is passed on; all of it where this is None."""


def listings(view: View) -> tuple[Listing, ...]:
    """The lists in which something is hidden."""
    kinds = (
        ("tools", "name", view.tools),
        ("prompts", "name", view.prompts),
        ("resources", "uri", view.resources),
        ("resourceTemplates", "uriTemplate", view.resources),
    )
    hidden = (Listing(member, name, names.exposes) for member, name, names in kinds if names.restricted)
    if view.approved is None:
        return tuple(hidden)
    shown = approves(view.approved)
    return tuple(replace(each, shown=shown) if each.member == "tools" else each for each in hidden)


class Undecidable(Exception):
    """Whether something hidden is inside cannot be told, so none of it may leave."""


def filter_lists(raw: bytes, hidden: tuple[Listing, ...]) -> bytes:
    """The JSON document `raw` without what `hidden` does not expose.

    Looks at a message, or each message of an array; what holds no such array in `result` stays byte for byte.
    Raises `Undecidable` for anything that is not one JSON document.
    """
    if b"\\u" not in raw and b"\0" not in raw and not any(each.member.encode() in raw for each in hidden):
        # Without an escape and without UTF-16 there is no other spelling of the member: nothing to decide.
        return raw
    try:
        text = raw.decode()
        cutter = _Cutter(text, hidden)
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
    """Walks a document down to its lists, decoding every value once. Positions are indexes into the text.

    Each method takes the position of a value and returns the one after it.
    """

    def __init__(self, text: str, hidden: tuple[Listing, ...]):
        self._text = text
        self._hidden = {each.member: each for each in hidden}
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
            listing = self._hidden.get(key)
            if listing is not None:
                _once(key, seen)
            if listing is not None and self._text[begin : begin + 1] == "[":
                is_list = True
                shown, end = self._shown(begin, listing)
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

    def _shown(self, start: int, listing: Listing) -> tuple[list[str], int]:
        """The texts of the elements that may be seen, and the position after the array."""
        shown: list[str] = []

        def element(position: int) -> int:
            found, end = self._decode(position)
            name = _exposed_name(found, listing)
            if name is not None:
                text = self._text[position:end]
                passed = text if listing.shown is None else listing.shown(name, text)
                if passed is not None:
                    shown.append(passed)
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


def _exposed_name(element: Any, listing: Listing) -> str | None:
    if not isinstance(element, dict) or isinstance(element, Repeated):
        return None
    name = cast("dict[str, Any]", element).get(listing.name)
    return name if isinstance(name, str) and listing.exposes(name) else None
