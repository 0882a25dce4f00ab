"""Lists on their way to a restricted connection, recognised by shape and cut without touching the rest. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from toolbox_dtma.gateway.definitions import approves
from toolbox_dtma.gateway.skimming import Document, Members, Span, Steps, Want
from toolbox_dtma.gateway.strictjson import NotJson, Repeated
from toolbox_dtma.gateway.view import View

MAX_TTL_MS = 5000
_CACHE_MEMBERS = ("cacheScope", "ttlMs")
_CACHED = ("resultType", *_CACHE_MEMBERS)
_ARRAY, _OBJECT = b"[{"

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


def may_hold_list(raw: bytes, hidden: tuple[Listing, ...]) -> bool:
    """Whether there is anything to decide: without an escape and without UTF-16, a member has one spelling only."""
    return b"\\u" in raw or b"\0" in raw or any(each.member.encode() in raw for each in hidden)


def filter_lists(raw: bytes, hidden: tuple[Listing, ...]) -> Steps[bytes]:
    """The JSON document `raw` without what `hidden` does not expose.

    Looks at a message, or each message of an array; what holds no such array in `result` stays byte for byte.
    Raises `Undecidable` for anything that is not one JSON document.
    """
    if not may_hold_list(raw, hidden):
        return raw
    document = Document(raw, strict=False)
    cutter = _Cutter(document, hidden)
    try:
        yield from document.check_text()
        end = yield from cutter.document((yield from document.space(0)))
        if (yield from document.space(end)) != len(raw):
            raise Undecidable("data after the document")
    except NotJson as error:
        raise Undecidable(str(error)) from None
    return _edited(raw, cutter.edits) if cutter.edits else raw


def _edited(raw: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    parts: list[bytes] = []
    position = 0
    for start, end, replacement in edits:
        parts += (raw[position:start], replacement)
        position = end
    return b"".join((*parts, raw[position:]))


class _Cutter:
    """Walks a document down to its lists. Positions are indexes into it.

    Each method takes the position of a value and returns the one after it.
    """

    def __init__(self, document: Document, hidden: tuple[Listing, ...]):
        self._document = document
        self._hidden = {each.member: each for each in hidden}
        self.edits: list[tuple[int, int, bytes]] = []
        """(start, end, replacement) of every `result` that changes, in order."""

    def document(self, start: int) -> Steps[int]:
        """A message or an array of messages."""
        if self._document.at(start) != _ARRAY:
            return (yield from self._message(start, 0))
        return (yield from self._document.each(start, 0, lambda position: self._message(position, 1)))

    def _message(self, start: int, depth: int) -> Steps[int]:
        document = self._document
        if document.at(start) != _OBJECT:
            return (yield from document.value(start, depth))
        seen: set[str] = set()

        def member(position: int) -> Steps[int]:
            key, position = yield from document.key(position)
            if key != "result":
                return (yield from document.value(position, depth + 1))
            _once(key, seen)
            return (yield from self._result(position, depth + 1))

        return (yield from document.each(start, depth, member))

    def _result(self, start: int, depth: int) -> Steps[int]:
        document = self._document
        if document.at(start) != _OBJECT:
            return (yield from document.value(start, depth))
        seen: set[str] = set()
        kept: list[bytes] = []
        caching: dict[str, Span] = {}
        is_list = False

        def member(position: int) -> Steps[int]:
            nonlocal is_list
            key, begin = yield from document.key(position)
            listing = self._hidden.get(key)
            if listing is not None:
                _once(key, seen)
            if listing is not None and document.at(begin) == _ARRAY:
                is_list = True
                shown, end = yield from self._shown(begin, depth + 1, listing)
                kept.append(b"%b:[%b]" % (json.dumps(key).encode(), b",".join(shown)))
                return end
            end = yield from document.value(begin, depth + 1)
            if key in _CACHED:
                caching[key] = Span(begin, end)
            if key not in _CACHE_MEMBERS:
                kept.append(b"%b:%b" % (json.dumps(key).encode(), document.raw[begin:end]))
            return end

        end = yield from document.each(start, depth, member)
        if is_list:
            # Results of a revision without caching have none of these members and get none.
            if caching:
                ttl = caching.get("ttlMs")
                kept.append(b'"cacheScope":"private","ttlMs":%d' % _ttl(document.decode(ttl) if ttl else None))
            self.edits.append((start, end, b"{%b}" % b",".join(kept)))
        return end

    def _shown(self, start: int, depth: int, listing: Listing) -> Steps[tuple[list[bytes], int]]:
        """The elements that may be seen, and the position after the array."""
        document = self._document
        shown: list[bytes] = []
        want = Want({listing.name: None})

        def element(position: int) -> Steps[int]:
            found, end = yield from document.wanted(position, depth + 1, want)
            name = _exposed_name(document.plain(found), listing) if isinstance(found, Members) else None
            if name is not None:
                raw = document.raw[position:end]
                passed = raw if listing.shown is None else _encoded(listing.shown(name, raw.decode()))
                if passed is not None:
                    shown.append(passed)
            return end

        end = yield from document.each(start, depth, element)
        return shown, end


def _once(key: str, seen: set[str]) -> None:
    if key in seen:
        raise Undecidable(f"{key} is there twice")
    seen.add(key)


def _ttl(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return 0
    return int(min(value, MAX_TTL_MS))


def _exposed_name(element: dict[str, Any], listing: Listing) -> str | None:
    name = element.get(listing.name)
    exposed = not isinstance(element, Repeated) and isinstance(name, str) and listing.exposes(name)
    return name if exposed else None


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()
