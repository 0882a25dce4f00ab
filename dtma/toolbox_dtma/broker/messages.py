"""JSON-RPC messages as far as the broker looks at them: whose they are, not what they say. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toolbox_dtma.gateway.parsing import Kind
from toolbox_dtma.gateway.skimming import Document, Found, Members, Steps, Want
from toolbox_dtma.gateway.strictjson import NotJson

MAX_BATCH = 256
"""Messages in a batch, whoever sends it."""
PROGRESS = "notifications/progress"
CANCELLED = "notifications/cancelled"
INITIALIZE = "initialize"

Id = str | int | float
"""Of a request or of a progress token: JSON's strings and numbers."""

_MESSAGE = Want(
    {
        **dict.fromkeys(("id", "method", "result", "error")),
        "params": Want(
            {**dict.fromkeys(("progressToken", "requestId")), "_meta": Want(dict.fromkeys(("progressToken",)))}
        ),
    }
)
_ARRAY, _OBJECT = b"[{"


class NotAMessage(ValueError):
    """Not a JSON-RPC message, nor a batch of them; the text says why."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message."""

    kind: Kind
    id: Id | None
    """None for a notification, and where it is neither a string nor a number."""
    method: str
    """Empty for a response."""
    token: Id | None
    """Of a request the progress token that it gives out, of a progress notification the one that it is about."""
    cancels: Id | None
    """Of a cancellation: the request."""
    failed: bool
    """Whether it is an error response."""
    raw: bytes


@dataclass(frozen=True, slots=True)
class Heard:
    """What a line or a body holds."""

    messages: tuple[Message, ...]
    batch: bool

    @property
    def requests(self) -> tuple[Message, ...]:
        """Those to which an answer is owed."""
        return tuple(message for message in self.messages if message.kind is Kind.REQUEST)


def read(raw: bytes) -> Steps[Heard]:
    """Read a line or a body, in short steps. Raises `NotAMessage`."""
    document = Document(raw, strict=False)
    try:
        yield from document.check_text()
        start = yield from document.space(0)
        batch = document.at(start) == _ARRAY
        if batch:
            messages, end = yield from _batch(document, start)
        else:
            found, end = yield from document.wanted(start, 0, _MESSAGE)
            messages = [_message(document, found, raw)]
        end = yield from document.space(end)
        if end < len(raw):
            raise document.bad(end)
    except NotJson as error:
        raise NotAMessage(str(error)) from None
    if not messages:
        raise NotAMessage("an empty batch holds no message")
    return Heard(tuple(messages), batch)


def _batch(document: Document, start: int) -> Steps[tuple[list[Message], int]]:
    messages: list[Message] = []

    def element(position: int) -> Steps[int]:
        if len(messages) == MAX_BATCH:
            raise NotAMessage(f"a batch may hold at most {MAX_BATCH} messages")
        found, end = yield from document.wanted(position, 1, _MESSAGE)
        messages.append(_message(document, found, document.raw[position:end]))
        return end

    end = yield from document.each(start, 0, element)
    return messages, end


def _message(document: Document, found: Found, raw: bytes) -> Message:
    if not isinstance(found, Members):
        raise NotAMessage("a message must be an object")
    members = found.values

    def value(inside: Found | None, *names: str) -> Any:
        """A member, or a member of a member; None if there is none."""
        for name in names:
            inside = inside.values.get(name) if isinstance(inside, Members) else None
        return None if inside is None else document.plain(inside)

    method, id_ = value(found, "method"), _id(value(found, "id"))
    if "method" not in members:
        return Message(Kind.RESPONSE, id_, "", None, None, "error" in members, raw)
    if not isinstance(method, str):
        raise NotAMessage("method must be a string")
    if "id" in members:
        token = _id(value(found, "params", "_meta", "progressToken"))
        return Message(Kind.REQUEST, id_, method, token, None, False, raw)
    token = _id(value(found, "params", "progressToken")) if method == PROGRESS else None
    cancels = _id(value(found, "params", "requestId")) if method == CANCELLED else None
    return Message(Kind.NOTIFICATION, None, method, token, cancels, False, raw)


def _id(value: Any) -> Id | None:
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else None
