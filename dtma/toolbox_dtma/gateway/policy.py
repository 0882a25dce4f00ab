"""What a connection may do with an instance: pure decisions about parsed messages (design §6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from toolbox_dtma.gateway.header_values import decode_header
from toolbox_dtma.gateway.methods import (
    HANDSHAKE_VERSIONS,
    KNOWN_REQUESTS,
    NAME_MEMBER,
    OPTIONAL_NAME_MEMBER,
    VERSION_META,
    Rule,
)
from toolbox_dtma.gateway.parsing import MAX_SUBSCRIPTIONS, Body, Kind, RpcId, RpcMessage, folded
from toolbox_dtma.gateway.strictjson import Repeated
from toolbox_dtma.gateway.view import View

METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
DENIED = INVALID_PARAMS
HEADER_MISMATCH = -32020


@dataclass(frozen=True, slots=True)
class Denial:
    """One refused element of a body."""

    id: RpcId
    code: int
    message: str
    answerable: bool
    """Whether the element is a request, to which an error can be addressed."""


def decide(body: Body, view: View) -> tuple[Denial, ...]:
    """Denials for a body; none means it may be forwarded. One denied element refuses all."""
    verdicts = [_verdict(message, view) for message in body.messages]
    if not any(verdicts):
        return ()
    return tuple(
        Denial(
            message.id,
            verdict[0] if verdict else DENIED,
            verdict[1] if verdict else "another message of this batch was refused",
            message.kind is Kind.REQUEST,
        )
        for message, verdict in zip(body.messages, verdicts, strict=True)
    )


def _verdict(message: RpcMessage, view: View) -> tuple[int, str] | None:
    if message.kind is not Kind.REQUEST:
        return None
    rule = KNOWN_REQUESTS.get(message.method)
    if rule is Rule.REFUSED:
        return METHOD_NOT_FOUND, f"{message.method} is not available through this gateway"
    if not view.restricted:
        return None
    if rule is None:
        return METHOD_NOT_FOUND, "this connection may only use methods that its policy knows"
    params = message.params or {}
    match rule:
        case Rule.CALL if not view.tools.allow(params.get("name")):
            return DENIED, "this connection may not call that tool"
        case Rule.PROMPT if not view.prompts.allow(params.get("name")):
            return DENIED, "this connection may not use that prompt"
        case Rule.READ if not view.resources.allow_uri(params.get("uri")):
            return DENIED, "this connection may not use that resource"
        case Rule.COMPLETE:
            return _completion(params.get("ref"), view)
        case Rule.LISTEN if not _may_listen(params, view):
            return DENIED, "this connection may not use one of those resources"
        case _:
            return None


def _unambiguous(value: Any, *members: str) -> Mapping[str, Any] | None:
    """The object that policy reads these members of; None where a server could read another value of one of them."""
    if not isinstance(value, dict) or isinstance(value, Repeated):
        return None
    found = cast("Mapping[str, Any]", value)
    alike = {folded(member) for member in members}
    return None if any(name not in members and folded(name) in alike for name in found) else found


def _completion(ref: Any, view: View) -> tuple[int, str] | None:
    reference = _unambiguous(ref, "type", "name", "uri") or {}
    match reference.get("type"):
        case "ref/prompt" if view.prompts.allow(reference.get("name")):
            return None
        case "ref/resource" if view.resources.allow_uri(reference.get("uri")):
            return None
        case "ref/prompt" | "ref/resource":
            return DENIED, "this connection may not use that prompt or resource"
        case _:
            return DENIED, "completion is available for prompts and resources"


def _may_listen(params: Mapping[str, Any], view: View) -> bool:
    """Whether every resource that is to be watched may be; what else there is to listen to tells no names."""
    if not view.resources.restricted:
        return True
    listening = _unambiguous(params, "notifications")
    wanted = None if listening is None else _unambiguous(listening.get("notifications"), "resourceSubscriptions")
    if wanted is None:
        return False
    uris = wanted.get("resourceSubscriptions")
    if uris is None:
        return True
    listed = cast("list[Any]", uris) if isinstance(uris, list) else [None]
    return len(listed) <= MAX_SUBSCRIPTIONS and all(map(view.resources.allow_uri, listed))


def needs_filter(body: Body) -> bool:
    """Whether the answer to a body may hold a list that belongs to it: a list method, or any batch."""
    return body.batch or KNOWN_REQUESTS.get(body.messages[0].method, Rule.PLAIN) is Rule.LIST


class HeaderMismatch(Exception):
    """Routing headers and body disagree, or a required header is missing."""

    code = HEADER_MISMATCH


class RevisionMissing(HeaderMismatch):
    """The header names a revision that wants it in `params._meta` too, and it is not there."""

    code = INVALID_PARAMS


class RoutingHeaders(NamedTuple):
    """The headers that mirror the body, each with all its values."""

    version: Sequence[str]
    method: Sequence[str]
    name: Sequence[str]


def check_routing(body: Body, headers: RoutingHeaders) -> bool:
    """Compare routing headers with the body. Returns whether the request is of a revision without handshake.

    Raises `HeaderMismatch`.
    """
    for values, header in (
        (headers.version, "MCP-Protocol-Version"),
        (headers.method, "Mcp-Method"),
        (headers.name, "Mcp-Name"),
    ):
        if len(values) > 1:
            raise HeaderMismatch(f"{header} is present more than once")
    version = headers.version[0] if headers.version else None
    named = [meta_version(message) for message in body.messages]
    modern = (version is not None and version not in HANDSHAKE_VERSIONS) or any(
        found and value not in HANDSHAKE_VERSIONS for found, value in named
    )
    if body.batch:
        if modern or headers.method or headers.name:
            raise HeaderMismatch("a batch has no single method or name for Mcp-Method and Mcp-Name to match")
        return False
    message = body.messages[0]
    required = modern and message.kind is Kind.REQUEST
    if required and not named[0][0]:
        raise RevisionMissing(f"params._meta must name the revision of this request as {VERSION_META}")
    both = version is not None and named[0][0]
    if (required and not both) or (both and named[0][1] != version):
        raise HeaderMismatch("MCP-Protocol-Version and the revision in params._meta must both be there and be equal")
    _check_method(message, headers.method, required)
    _check_name(message, headers.name, required)
    return modern


def _check_method(message: RpcMessage, values: Sequence[str], required: bool) -> None:
    if values and values[0] != message.method:
        raise HeaderMismatch("Mcp-Method does not match the body")
    if required and not values:
        raise HeaderMismatch("Mcp-Method is required at this protocol revision")


def _check_name(message: RpcMessage, values: Sequence[str], required: bool) -> None:
    params = message.params or {}
    if not values:
        if required and message.method in NAME_MEMBER:
            raise HeaderMismatch("Mcp-Name is required for this method at this protocol revision")
        return
    member = NAME_MEMBER.get(message.method) or OPTIONAL_NAME_MEMBER.get(message.method)
    known = (
        [params[name] for name in ("name", "uri", "taskId") if name in params]
        if member is None
        else [params.get(member)]
    )
    value = decode_header(values[0])
    if value is None or not known or any(value != candidate for candidate in known):
        raise HeaderMismatch("Mcp-Name does not match the body")


def meta_version(message: RpcMessage) -> tuple[bool, Any]:
    """(present, value) of the revision in `params._meta`; a repeated one counts as present and equal to nothing."""
    meta: Any = (message.params or {}).get("_meta")
    if not isinstance(meta, dict) or VERSION_META not in meta:
        return False, None
    value = cast("Mapping[str, Any]", meta)[VERSION_META]
    return True, value if isinstance(value, str) and not isinstance(meta, Repeated) else None
