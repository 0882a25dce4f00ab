"""POST bodies, read strictly: what policy sees is what any server must see (design §6). Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, cast

from toolbox_dtma.gateway import strictjson
from toolbox_dtma.gateway.methods import KNOWN_REQUESTS
from toolbox_dtma.gateway.strictjson import NotJson, Repeated

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
MAX_BATCH = 50

PROTECTED = frozenset({"jsonrpc", "id", "method", "params", "result", "error", "name", "uri", "ref", "taskId", "_meta"})
"""Members that policy or a server decides by. Nothing that merely resembles one of them is let through."""
_PROTECTED_FOLDED = frozenset(name.casefold() for name in PROTECTED)
_INVISIBLE = ("Cc", "Cf")
"""Unicode categories of control and format characters."""

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


@dataclass(frozen=True, slots=True)
class RpcMessage:
    """One message, as far as policy looks at it."""

    kind: Kind
    id: RpcId
    """For error answers: null where the message has none or one that cannot be echoed."""
    method: str
    """Empty for a response."""
    params: Mapping[str, Any] | None
    """None where `params` is absent or not an object."""


@dataclass(frozen=True, slots=True)
class Body:
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
    if not elements:
        raise BodyRefused(INVALID_REQUEST, "an empty batch holds no message")
    if len(elements) > MAX_BATCH:
        raise BodyRefused(INVALID_REQUEST, f"a batch may hold at most {MAX_BATCH} messages")
    return Body(tuple(_message(element) for element in elements), batch=True)


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
    if "method" not in members:
        return RpcMessage(Kind.RESPONSE, id_, "", params)
    if "result" in members or "error" in members:
        raise BodyRefused(INVALID_REQUEST, "a message cannot be a request and a response at once", id_)
    method = members["method"]
    if not isinstance(method, str):
        raise BodyRefused(INVALID_REQUEST, "method must be a string", id_)
    if members.get("id") is None and method in KNOWN_REQUESTS:
        raise BodyRefused(INVALID_REQUEST, f"{method} is a request and needs an id")
    # A null id is somebody's request and somebody else's notification: the stricter reading counts.
    kind = Kind.REQUEST if "id" in members else Kind.NOTIFICATION
    return RpcMessage(kind, id_, method, params)


def _check_members(members: dict[str, Any], where: str, id: RpcId) -> None:
    if isinstance(members, Repeated):
        raise BodyRefused(INVALID_REQUEST, f"{where} has a member twice", id)
    for name in members:
        if name not in PROTECTED and resembles_protected(name):
            raise BodyRefused(INVALID_REQUEST, f"{where} has a member that only resembles a reserved one", id)


@lru_cache(maxsize=1024)
def _folded(name: str) -> str:
    visible = "".join(c for c in name if unicodedata.category(c) not in _INVISIBLE)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    return "".join(c for c in folded if unicodedata.category(c) not in _INVISIBLE)


def folded(name: str) -> str:
    """A member's name after NFKC, case folding and removal of control characters."""
    # Long names are never cached: they would let one client fill the cache with kilobytes each.
    return _folded(name) if len(name) <= 64 else _folded.__wrapped__(name)


def resembles_protected(name: str) -> bool:
    """Whether a name is a protected one once it is `folded`."""
    return folded(name) in _PROTECTED_FOLDED


def _echo(value: Any) -> RpcId:
    """The id for an error answer: strings and numbers are echoed, anything else becomes null."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return None
    return value
