"""Messages of a process that many HTTP requests share: what names a request in them, found and replaced in the bytes.

Requests of one connection come from clients that know nothing of each other, and may use the same ids and progress
tokens. To the process each gets a number of ours in their place; on the way back the client's own bytes are put in
again. Nothing else of a message changes, and none is serialised anew (ADR 0013). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from toolbox_dtma.broker.messages import Id, NotAMessage
from toolbox_dtma.gateway.methods import VERSION_META
from toolbox_dtma.gateway.parsing import Kind, folded
from toolbox_dtma.gateway.skimming import Document, Found, Members, Span, Steps, Want
from toolbox_dtma.gateway.strictjson import NotJson

SUBSCRIPTION_META = "io.modelcontextprotocol/subscriptionId"
"""Member of `_meta` with the id of the request that a message on its stream belongs to (2026-07-28, subscriptions)."""
MAX_ID_BYTES = 1024
"""Of an id or a progress token as its client writes it: it goes out again with each message about the request."""


class Unclear(NotAMessage):
    """JSON, but not one message that can be read in one way only; the text says why."""


class Mark(Enum):
    """What is looked at in a message, by the names of the members that lead to it."""

    ID = ("id",)
    NAME = ("params", "name")
    ARGUMENTS = ("params", "arguments")
    TOKEN = ("params", "_meta", "progressToken")
    """Given out by a request."""
    VERSION = ("params", "_meta", VERSION_META)
    PROGRESS = ("params", "progressToken")
    """What a progress notification is about."""
    CANCELS = ("params", "requestId")
    SUBSCRIPTION = ("params", "_meta", SUBSCRIPTION_META)
    CONCLUDES = ("result", "_meta", SUBSCRIPTION_META)
    """The subscription that an answer ends."""
    CODE = ("error", "code")


@dataclass(frozen=True, slots=True)
class Marked:
    """One message."""

    raw: bytes
    kind: Kind
    method: str
    """Empty for a response."""
    failed: bool
    """Whether it is an error response."""
    clear: bool
    """Whether no member of what names a request in a notification is there twice."""
    places: Mapping[Mark, Span]
    values: Mapping[Mark, Any]
    """Decoded; what is in a container equals nothing."""

    def id(self, mark: Mark) -> Id | None:
        """What stands there, if it can name a request."""
        value = self.values.get(mark)
        return value if isinstance(value, str | int | float) and not isinstance(value, bool) else None

    def number(self, mark: Mark) -> int | None:
        """The whole number that stands there, however it is written; a string is none, whatever it spells."""
        match self.id(mark):
            case int(number):
                return number
            case float(number) if number.is_integer():
                return int(number)
            case _:
                return None

    def written(self, mark: Mark) -> bytes | None:
        """The bytes that stand there."""
        place = self.places.get(mark)
        return None if place is None else self.raw[place.start : place.end]

    def replaced(self, by: Mapping[Mark, bytes]) -> bytes:
        """The message with other values in these places, which it must have; every other byte as it was."""
        edits = sorted(((self.places[mark], new) for mark, new in by.items()), key=lambda edit: edit[0].start)
        parts: list[bytes] = []
        position = 0
        for place, new in edits:
            parts += (self.raw[position : place.start], new)
            position = place.end
        return b"".join((*parts, self.raw[position:]))


def _only(names: Collection[str]) -> Callable[[str], bool]:
    """Refuses names that some servers take for one of these."""
    alike = {folded(name) for name in names}
    return lambda name: name in names or folded(name) not in alike


def _want(*, of_client: bool) -> Want:
    def object_with(members: dict[str, Want | None]) -> Want:
        return Want(members, check=_only(members) if of_client else None)

    meta = object_with(dict.fromkeys(("progressToken", VERSION_META, SUBSCRIPTION_META)))
    named = dict.fromkeys(("name", "arguments", "progressToken", "requestId"))
    return object_with(
        {
            **dict.fromkeys(("id", "method")),
            "params": object_with({**named, "_meta": meta}),
            "result": Want({"_meta": Want({SUBSCRIPTION_META: None})}),
            "error": Want({"code": None}),
        }
    )


_OF_CLIENT, _OF_PROCESS = _want(of_client=True), _want(of_client=False)


def read(raw: bytes, *, of_client: bool) -> Steps[Marked]:
    """Read one message, in short steps. Raises `NotAMessage`, `Unclear`.

    Of a client's, whatever a server might read differently is refused: what is replaced must be all that it could take
    for an id. Of a process's, an id that is there twice is.
    """
    document = Document(raw, strict=False)
    try:
        yield from document.check_text()
        start = yield from document.space(0)
        found, end = yield from document.wanted(start, 0, _OF_CLIENT if of_client else _OF_PROCESS)
        end = yield from document.space(end)
        if end < len(raw):
            raise document.bad(end)
    except NotJson as error:
        raise NotAMessage(str(error)) from None
    if not isinstance(found, Members):
        raise Unclear("a message must be one object; this revision has no batches")
    said = _at(found, "params")
    meant = [found, said, _at(said, "_meta")]
    objects = [each for each in meant if isinstance(each, Members)]
    if found.repeated or (of_client and any(each.repeated for each in objects)):
        raise Unclear("a member is there twice in the message, in params or in _meta")
    if not all(each.passed for each in objects):
        raise Unclear("the message, params or _meta has a member that only resembles one of the protocol's")
    places = {mark: span for mark in Mark if isinstance(span := _at(found, *mark.value), Span)}
    return _marked(document, found, places, clear=not any(each.repeated for each in objects))


def _marked(document: Document, found: Members, places: dict[Mark, Span], *, clear: bool) -> Marked:
    method = found.values.get("method")
    named = None if method is None else document.plain(method)
    if method is not None and not isinstance(named, str):
        raise Unclear("method must be a string")
    result = _at(found, "result")
    if any(isinstance(each, Members) and each.repeated for each in (result, _at(result, "_meta"))):
        places.pop(Mark.CONCLUDES, None)
    values = {mark: document.decode(span) for mark, span in places.items() if mark is not Mark.ARGUMENTS}
    if named is None:
        kind = Kind.RESPONSE
    else:
        kind = Kind.REQUEST if "id" in found.values else Kind.NOTIFICATION
    return Marked(document.raw, kind, named or "", named is None and "error" in found.values, clear, places, values)


def _at(found: Found | None, *names: str) -> Found | None:
    """A member of a member, as it was found."""
    for name in names:
        found = found.values.get(name) if isinstance(found, Members) else None
    return found
