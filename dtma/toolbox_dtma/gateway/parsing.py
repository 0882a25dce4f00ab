"""POST bodies, read strictly: what policy sees is what any server must see (design §6). Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple, cast

from toolbox_dtma.gateway import strictjson
from toolbox_dtma.gateway.methods import KNOWN_REQUESTS, TRACE_META, VERSION_META
from toolbox_dtma.gateway.skimming import Document, Found, Members, Steps, Want
from toolbox_dtma.gateway.strictjson import NotJson, Repeated

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
SERVER_ERROR = -32000
MAX_BATCH = 50

PROTECTED = frozenset({"jsonrpc", "id", "method", "params", "result", "error", "name", "uri", "ref", "taskId", "_meta"})
"""Members that policy or a server decides by. Nothing that merely resembles one of them is let through."""
_PROTECTED_FOLDED = frozenset(name.casefold() for name in PROTECTED)
_INVISIBLE = ("Cc", "Cf")
"""Unicode categories of control and format characters."""
_LONGEST = 64
"""Characters. No member that policy or a server decides by is longer."""

MAX_SUBSCRIPTIONS = 1000
"""Resources that one request may ask to be told of, where it must be decided for each."""
_ARRAY = ord("[")

RpcId = str | int | float | None


class BodyRefused(Exception):
    """The body must not be forwarded."""

    def __init__(self, code: int, message: str, id: RpcId = None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.id = id


class Kind(Enum):
    """What a JSON-RPC message is."""

    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"


class RpcMessage(NamedTuple):
    """One message, as far as policy looks at it."""

    kind: Kind
    id: RpcId
    """For error answers: null where the message has none or one that cannot be echoed."""
    method: str
    """Empty for a response."""
    params: Mapping[str, Any] | None
    """None where `params` is absent or not an object. Of a large body only what policy and records look at."""


class Body(NamedTuple):
    """A parsed POST body."""

    messages: tuple[RpcMessage, ...]
    batch: bool

    @property
    def has_requests(self) -> bool:
        """Whether an answer is owed."""
        return any(message.kind is Kind.REQUEST for message in self.messages)


def check_content(types: Sequence[str], encodings: Sequence[str], transfer: Sequence[str]) -> None:
    """Refuse a body by its Content-Type, Content-Encoding and Transfer-Encoding lines. Raises `BodyRefused`."""
    if [coding.lower() for coding in transfer] not in ([], ["chunked"]):
        raise BodyRefused(INVALID_REQUEST, "the only Transfer-Encoding is chunked")
    if any(encodings):
        raise BodyRefused(INVALID_REQUEST, "Content-Encoding is not supported; send the body as it is")
    if len(types) != 1:
        raise BodyRefused(INVALID_REQUEST, "exactly one Content-Type is needed: application/json")
    essence, *parameters = types[0].split(";")
    if essence.strip().lower() != "application/json":
        raise BodyRefused(INVALID_REQUEST, "Content-Type must be application/json")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip('"').lower() != "utf-8":
            raise BodyRefused(INVALID_REQUEST, "the charset must be utf-8")


def parse_body(raw: bytes) -> Body:
    """Parse a POST body. Raises `BodyRefused`."""
    try:
        document = strictjson.loads(raw)
    except NotJson as error:
        raise BodyRefused(PARSE_ERROR, str(error)) from None
    if not isinstance(document, list):
        return Body((_message(document),), batch=False)
    elements = cast("list[Any]", document)
    _check_batch(len(elements))
    return Body(tuple(_message(element) for element in elements), batch=True)


def parse_in_steps(raw: bytes) -> Steps[Body]:
    """What `parse_body` does, in short steps, and without what policy does not look at. Raises `BodyRefused`."""
    document = Document(raw)
    try:
        yield from document.check_text()
        start = yield from document.space(0)
        if document.at(start) == _ARRAY:
            found, end = yield from _batch(document, start)
        else:
            message, end = yield from document.wanted(start, 0, _MESSAGE)
            found = [message]
        end = yield from document.space(end)
        if end < len(raw):
            raise document.bad(end)
    except NotJson as error:
        raise BodyRefused(PARSE_ERROR, str(error)) from None
    batch = document.at(start) == _ARRAY
    if batch:
        _check_batch(len(found))
    messages: list[RpcMessage] = []
    for each in found:
        messages.append(_skimmed(document, each))
        yield
    return Body(tuple(messages), batch=batch)


def _batch(document: Document, start: int) -> Steps[tuple[list[Found], int]]:
    found: list[Found] = []

    def element(position: int) -> Steps[int]:
        message, end = yield from document.wanted(position, 1, _MESSAGE if len(found) <= MAX_BATCH else None)
        found.append(message)
        return end

    end = yield from document.each(start, 0, element)
    return found, end


def _skimmed(document: Document, found: Found) -> RpcMessage:
    if not isinstance(found, Members):
        raise BodyRefused(INVALID_REQUEST, "a message must be an object")
    members = cast("dict[str, Any]", document.plain(found))
    id_ = _echo(members.get("id"))
    _refuse_lookalikes(found, "the message", id_)
    params = found.values.get("params")
    if isinstance(params, Members):
        _refuse_lookalikes(params, "params", id_)
    return _classified(members, cast("dict[str, Any]", members["params"]) if isinstance(params, Members) else None, id_)


def _refuse_lookalikes(found: Members, where: str, id: RpcId) -> None:
    if found.repeated:
        raise BodyRefused(INVALID_REQUEST, f"{where} has a member twice", id)
    if not found.passed:
        raise BodyRefused(INVALID_REQUEST, f"{where} has a member that only resembles a reserved one", id)


def _check_batch(length: int) -> None:
    if not length:
        raise BodyRefused(INVALID_REQUEST, "an empty batch holds no message")
    if length > MAX_BATCH:
        raise BodyRefused(INVALID_REQUEST, f"a batch may hold at most {MAX_BATCH} messages")


def _message(value: Any) -> RpcMessage:
    if not isinstance(value, dict):
        raise BodyRefused(INVALID_REQUEST, "a message must be an object")
    members = cast("dict[str, Any]", value)
    id_ = _echo(members.get("id"))
    _check_members(members, "the message", id_)
    params = members.get("params")
    if isinstance(params, dict):
        params = cast("dict[str, Any]", params)
        _check_members(params, "params", id_)
    else:
        params = None
    return _classified(members, params, id_)


def _classified(members: Mapping[str, Any], params: Mapping[str, Any] | None, id: RpcId) -> RpcMessage:
    if "method" not in members:
        return RpcMessage(Kind.RESPONSE, id, "", params)
    if "result" in members or "error" in members:
        raise BodyRefused(INVALID_REQUEST, "a message cannot be a request and a response at once", id)
    method = members["method"]
    if not isinstance(method, str):
        raise BodyRefused(INVALID_REQUEST, "method must be a string", id)
    if members.get("id") is None and method in KNOWN_REQUESTS:
        raise BodyRefused(INVALID_REQUEST, f"{method} is a request and needs an id")
    # A null id is somebody's request and somebody else's notification: the stricter reading counts.
    kind = Kind.REQUEST if "id" in members else Kind.NOTIFICATION
    return RpcMessage(kind, id, method, params)


def _check_members(members: dict[str, Any], where: str, id: RpcId) -> None:
    if isinstance(members, Repeated):
        raise BodyRefused(INVALID_REQUEST, f"{where} has a member twice", id)
    if not all(map(is_unambiguous, members)):
        raise BodyRefused(INVALID_REQUEST, f"{where} has a member that only resembles a reserved one", id)


def is_unambiguous(name: str) -> bool:
    """Whether a name is a protected one, or cannot be taken for one."""
    return name in PROTECTED or not resembles_protected(name)


@lru_cache(maxsize=1024)
def _folded(name: str) -> str:
    visible = ""
    for character in name:
        if unicodedata.category(character) not in _INVISIBLE:
            visible += character
            # What follows makes nothing shorter that is to become ASCII, so a longer name resembles none of ours.
            if len(visible) > _LONGEST:
                return visible
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    return "".join(c for c in folded if unicodedata.category(c) not in _INVISIBLE)


def folded(name: str) -> str:
    """A member's name after NFKC, case folding and removal of control characters."""
    if name.isascii() and name.isprintable():
        return name.lower()
    # Long names are never cached: they would let one client fill the cache with kilobytes each.
    return _folded(name) if len(name) <= _LONGEST else _folded.__wrapped__(name)


def resembles_protected(name: str) -> bool:
    """Whether a name is a protected one once it is `folded`."""
    return folded(name) in _PROTECTED_FOLDED


def _alike(*members: str) -> Callable[[str], bool]:
    """Tells names that policy must see because a server could take them for one of these."""
    names = {folded(member) for member in members}
    return lambda name: folded(name) in names


_PARAMS = Want(
    {
        **dict.fromkeys(PROTECTED),
        "ref": Want(dict.fromkeys(("type", "name", "uri")), keep=_alike("type", "name", "uri")),
        "_meta": Want({VERSION_META: None, TRACE_META: None}),
        "notifications": Want(
            {"resourceSubscriptions": Want(elements=MAX_SUBSCRIPTIONS + 1)}, keep=_alike("resourceSubscriptions")
        ),
    },
    check=is_unambiguous,
    keep=_alike("notifications"),
)
_MESSAGE = Want({**dict.fromkeys(PROTECTED), "params": _PARAMS}, check=is_unambiguous)


def _echo(value: Any) -> RpcId:
    """The id for an error answer: strings and numbers are echoed, anything else becomes null."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return None
    return value
