"""Bodies of requests, on their way in."""

from __future__ import annotations

import asyncio

from aiohttp import web

from toolbox_dtma.gateway import parsing
from toolbox_dtma.gateway.http import broken
from toolbox_dtma.gateway.parsing import SERVER_ERROR, Body, BodyRefused
from toolbox_dtma.gateway.refusal import Refusal
from toolbox_dtma.gateway.skimming import is_quick
from toolbox_dtma.gateway.stepping import Stepper
from toolbox_dtma.wire.limits import MAX_REQUEST_BYTES

BODY_SECONDS = 30.0
"""Longest time a request body may take to arrive."""


async def read_json(request: web.BaseRequest) -> bytes:
    """The whole body, if its head says that it is JSON. Raises `BodyRefused`, and `Refusal` 400, 413 or 408."""
    headers = request.headers
    parsing.check_content(
        *(headers.getall(name, []) for name in ("Content-Type", "Content-Encoding", "Transfer-Encoding"))
    )
    return await _read(request)


async def parsed(raw: bytes, stepper: Stepper) -> Body:
    """Parse a body, a large one in steps. Raises `BodyRefused`."""
    return parsing.parse_body(raw) if is_quick(raw) else await stepper.run(parsing.parse_in_steps(raw))


def refused(error: BodyRefused) -> Refusal:
    """The answer to such a body."""
    return Refusal.rpc(400, "body", error.code, error.message, id=error.id)


async def _read(request: web.BaseRequest) -> bytes:
    if (request.content_length or 0) > MAX_REQUEST_BYTES:
        raise _too_large()
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    raw = bytearray()
    if request.content.is_eof():
        # It came together with its head, as small ones do: there is nothing to wait for.
        raw += request.content.read_nowait()
        if len(raw) > MAX_REQUEST_BYTES:
            raise _too_large()
        return bytes(raw)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                raw += chunk
                if len(raw) > MAX_REQUEST_BYTES:
                    raise _too_large()
    except web.RequestPayloadError:
        raise broken() from None
    except TimeoutError:
        raise Refusal.rpc(408, "slow-body", SERVER_ERROR, "The body did not arrive in time") from None
    return bytes(raw)


def _too_large() -> Refusal:
    return Refusal.rpc(413, "too-large", SERVER_ERROR, f"A body may have at most {MAX_REQUEST_BYTES} bytes")
