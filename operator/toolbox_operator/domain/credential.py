"""A connection's Secret: its token, a rotation under way, and what an agent finds in it.

The Secret is the authority. Everything a rotation needs to go on after a crash is on it:

    token                               steady
    token, token-next, `rotating`       a new token is about to be programmed beside the old one
    token (the new one), `previous`     promoted; hashes of replaced tokens, each with the time it ends
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, cast

from toolbox_dtma.wire import Credential
from toolbox_operator.api.meta import ANNOTATION_ROTATED, API_VERSION, GROUP, LABEL_CONNECTION, Body, Kind
from toolbox_operator.api.parse import ConnectionObject

ANNOTATION_ROTATING: Final = f"{GROUP}/rotating"
"""On the Secret: the value of the rotate annotation that is being carried out."""

ANNOTATION_PREVIOUS: Final = f"{GROUP}/previous"
"""On the Secret: `sha256@time` of replaced tokens that are still accepted, newest first, separated by commas."""

TOKEN: Final = re.compile(r"mtb_[A-Za-z0-9_-]{43}")
_KEPT = 2
"""Replaced tokens that may be accepted at once: a grant has room for four credentials."""


@dataclass(frozen=True, slots=True)
class Previous:
    """A replaced token, known by its hash, and when it ends."""

    hash: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a connection."""

    token: str = field(repr=False)
    next: str | None = field(default=None, repr=False)
    rotated: str = ""
    rotating: str | None = None
    previous: tuple[Previous, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """What the agent is told besides its token."""

    server_name: str
    url: str
    transport: str
    ca_pem: str | None


def new_token(random_bytes: bytes) -> str:
    """A token from 32 random bytes."""
    return "mtb_" + base64.urlsafe_b64encode(random_bytes).rstrip(b"=").decode()


def digest(token: str) -> str:
    """What hosts know of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def owned(secret: Body, connection: ConnectionObject) -> bool:
    """Whether a Secret is this connection's: made for this incarnation, by ownerReference. Labels prove nothing."""
    references = cast("list[Mapping[str, Any]]", secret["metadata"].get("ownerReferences") or [])
    return any(reference.get("uid") == connection.uid and reference.get("controller") for reference in references)


def read_tokens(secret: Body) -> Tokens | None:
    """The tokens in a Secret; None when its `token` is not one of ours."""
    data = cast("Mapping[str, str]", secret.get("data") or {})
    token = _decoded(data.get("token"))
    if token is None or not TOKEN.fullmatch(token):
        return None
    following = _decoded(data.get("token-next"))
    if following is not None and not TOKEN.fullmatch(following):
        following = None
    notes = cast("Mapping[str, str]", secret["metadata"].get("annotations") or {})
    return Tokens(
        token=token,
        next=following,
        rotated=notes.get(ANNOTATION_ROTATED, ""),
        rotating=notes.get(ANNOTATION_ROTATING) if following is not None else None,
        previous=_read_previous(notes.get(ANNOTATION_PREVIOUS, "")),
    )


def advance(tokens: Tokens | None, rotate: str | None, now: datetime, fresh: str) -> Tokens:
    """The tokens that the Secret should hold now. `fresh` is a new token, used if one is needed.

    Without usable tokens everything starts over: whatever was known before is not accepted any more, and a
    rotation that was asked for is thereby done.
    """
    if tokens is None:
        return Tokens(token=fresh, rotated=rotate or "")
    alive = tuple(previous for previous in tokens.previous if previous.until > now)
    tokens = replace(tokens, previous=alive)
    if tokens.next is None and rotate and rotate != tokens.rotated:
        return replace(tokens, next=fresh, rotating=rotate)
    return tokens


def promote(tokens: Tokens, now: datetime, grace: float) -> Tokens:
    """The next token takes over; the present one is accepted for `grace` more seconds."""
    if tokens.next is None:
        return tokens
    ended = Previous(digest(tokens.token), (now + timedelta(seconds=grace)).replace(microsecond=0))
    return Tokens(
        token=tokens.next,
        rotated=tokens.rotating or tokens.rotated,
        previous=(ended, *tokens.previous)[:_KEPT],
    )


def credentials(tokens: Tokens) -> tuple[Credential, ...]:
    """What the host is to accept."""
    current = [Credential(value=digest(tokens.token))]
    if tokens.next is not None:
        current.append(Credential(value=digest(tokens.next)))
    current += [Credential(value=previous.hash, not_after=previous.until) for previous in tokens.previous]
    return tuple(current)


def secret_body(connection: ConnectionObject, name: str, tokens: Tokens, target: Target) -> dict[str, Any]:
    """The whole Secret, as it is created."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "namespace": connection.key.namespace,
            "name": name,
            "labels": {LABEL_CONNECTION: connection.uid},
            "annotations": {key: value for key, value in _notes(tokens).items() if value is not None},
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": str(Kind.CONNECTION),
                    "name": connection.key.name,
                    "uid": connection.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "type": "Opaque",
        "data": {key: value for key, value in _data(tokens, target).items() if value is not None},
    }


def secret_patch(secret: Body, connection: ConnectionObject, tokens: Tokens, target: Target) -> dict[str, Any]:
    """A merge patch that makes an existing Secret what it should be; empty when it is."""
    data = cast("Mapping[str, str]", secret.get("data") or {})
    labels = cast("Mapping[str, str]", secret["metadata"].get("labels") or {})
    notes = cast("Mapping[str, str]", secret["metadata"].get("annotations") or {})
    patch: dict[str, Any] = {}
    if changed := {key: value for key, value in _data(tokens, target).items() if data.get(key) != value}:
        patch["data"] = changed
    metadata: dict[str, Any] = {}
    if changed_notes := {key: value for key, value in _notes(tokens).items() if notes.get(key) != value}:
        metadata["annotations"] = changed_notes
    if labels.get(LABEL_CONNECTION) != connection.uid:
        metadata["labels"] = {LABEL_CONNECTION: connection.uid}
    if metadata:
        patch["metadata"] = metadata
    return patch


def client_configuration(target: Target, token: str) -> str:
    """`mcp.json`: the form that common MCP clients read."""
    server = {"type": "http", "url": target.url, "headers": {"Authorization": f"Bearer {token}"}}
    return json.dumps({"mcpServers": {target.server_name: server}}, indent=2) + "\n"


def _data(tokens: Tokens, target: Target) -> dict[str, str | None]:
    plain = {
        "url": target.url,
        "token": tokens.token,
        "token-next": tokens.next,
        "transport": target.transport,
        "ca.crt": target.ca_pem,
        "mcp.json": client_configuration(target, tokens.token),
    }
    return {key: None if value is None else base64.b64encode(value.encode()).decode() for key, value in plain.items()}


def _notes(tokens: Tokens) -> dict[str, str | None]:
    previous = ",".join(f"{item.hash}@{item.until.isoformat()}" for item in tokens.previous)
    return {
        ANNOTATION_ROTATED: tokens.rotated or None,
        ANNOTATION_ROTATING: tokens.rotating,
        ANNOTATION_PREVIOUS: previous or None,
    }


def _read_previous(text: str) -> tuple[Previous, ...]:
    found: list[Previous] = []
    for item in filter(None, text.split(",")):
        hash_, _, until = item.partition("@")
        try:
            moment = datetime.fromisoformat(until)
        except ValueError:
            continue
        if re.fullmatch(r"[0-9a-f]{64}", hash_) and moment.tzinfo is not None:
            found.append(Previous(hash_, moment))
    return tuple(found[:_KEPT])


def _decoded(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return base64.b64decode(value, validate=True).decode("ascii")
    except ValueError:
        return None
