"""The client's side of an answer under way: writing to it, and cutting it off."""

from __future__ import annotations

import asyncio

from aiohttp import web

from toolbox_dtma.gateway.exchanges import Exchange
from toolbox_dtma.gateway.limits import RESPONSE_SIZE

WRITE_STALL_SECONDS = 120.0
"""Longest time a client may take to accept bytes."""
WHOLE_BYTES = 64 * 1024
"""Answers up to this size are handed to the server part at once: the kernel takes as much from anybody."""


async def write(response: web.StreamResponse, data: bytes) -> None:
    """Send bytes, and wait while the client takes none. Raises `TimeoutError`, `ConnectionError`."""
    # In pieces: what a slow client leaves of a large write would lie encrypted in memory, more than once.
    for start in range(0, len(data), WHOLE_BYTES):
        async with asyncio.timeout(WRITE_STALL_SECONDS):
            await response.write(data[start : start + WHOLE_BYTES])


def cut(request: web.BaseRequest, exchange: Exchange | None = None) -> None:
    """Close the client's connection so that it cannot take what it got for the whole.

    `exchange`: of one that was cut for the size of its answer.
    """
    if exchange is not None:
        exchange.cut = RESPONSE_SIZE
    transport = request.transport
    if transport is not None:
        transport.abort()


def desert(request: web.BaseRequest, exchange: Exchange) -> None:
    """The client hung up, which only a write told, or takes nothing any more, which is no better."""
    exchange.deserted = True
    cut(request)
