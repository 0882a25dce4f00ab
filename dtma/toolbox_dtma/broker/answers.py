"""What the broker's answers over HTTP have in common, to requests of a session and to those without."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from math import ceil
from typing import Any

from aiohttp import web

from toolbox_dtma.broker.control import NoSession
from toolbox_dtma.broker.messages import Id
from toolbox_dtma.gateway.downstream import write
from toolbox_dtma.gateway.headers import EVENT_STREAM
from toolbox_dtma.gateway.http import broken
from toolbox_dtma.gateway.methods import HANDSHAKE_VERSIONS
from toolbox_dtma.gateway.parsing import SERVER_ERROR
from toolbox_dtma.gateway.refusal import Refusal, rpc_error
from toolbox_dtma.link.broker import Refused
from toolbox_dtma.wire.limits import MAX_REQUEST_BYTES

BODY_SECONDS = 30.0
RETRY_SECONDS = 5.0
JSON = "application/json"
VERSION = "MCP-Protocol-Version"
EVENTS = {"Content-Type": EVENT_STREAM, "Cache-Control": "no-store"}


async def read_body(request: web.BaseRequest) -> bytes:
    """Raises `Refusal`."""
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                raw += chunk
                if len(raw) > MAX_REQUEST_BYTES:
                    message = f"A body may have at most {MAX_REQUEST_BYTES} bytes"
                    raise Refusal.rpc(413, "too-large", SERVER_ERROR, message)
    except web.RequestPayloadError:
        raise broken() from None
    except TimeoutError:
        raise Refusal.rpc(408, "slow-body", SERVER_ERROR, "The body did not arrive in time") from None
    return bytes(raw)


def names_no_handshake(request: web.BaseRequest) -> bool:
    """Whether a request is of a revision without handshake, as its header says; the gateway compares the body."""
    return any(version not in HANDSHAKE_VERSIONS for version in request.headers.getall(VERSION, []))


def needs_handshake(id: Id | None) -> Refusal:
    """What a request of a revision without handshake gets where the server knows none of them.

    A client of several revisions then begins with a handshake. That revision's own error code would say the opposite
    (2026-07-28, versioning).
    """
    supported = sorted(HANDSHAKE_VERSIONS)
    message = f"Unsupported protocol version; this server speaks {', '.join(supported)}"
    return Refusal(400, "version", rpc_error(SERVER_ERROR, message, id, {"supported": supported}))


def no_session(none: NoSession, id: Id | None) -> Refusal:
    """There is no process to talk to."""
    return later(404 if none.why is Refused.UNKNOWN else 503, none.message, id, none.retry_seconds)


def input_full(message: str, id: Id | None) -> Refusal:
    """The process takes nothing."""
    return Refusal.rpc(504, "input", SERVER_ERROR, message.capitalize(), id=id)


def later(status: int, message: str, id: Id | None, seconds: float | None) -> Refusal:
    """An error that passes."""
    data: Mapping[str, Any] | None = None
    headers = {"Retry-After": str(ceil(RETRY_SECONDS))} if status == 503 else {}
    if seconds is not None:
        data = {"retryAfterMs": max(ceil(seconds * 1000), 1)}
        headers = {"Retry-After": str(max(ceil(seconds), 1))}
    return Refusal(status, "later", rpc_error(SERVER_ERROR, message, id, data), headers)


def event(raw: bytes) -> bytes:
    """A message as an event."""
    return b"data: " + raw + b"\n\n"


async def tell(request: web.BaseRequest, response: web.StreamResponse, data: bytes) -> bool:
    """Send to the client; whether it still takes anything."""
    try:
        await write(response, data)
    except (ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()
        return False
    return True
