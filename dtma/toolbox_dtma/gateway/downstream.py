"""The client's side of an answer under way: writing to it, and cutting it off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion11

from toolbox_dtma.gateway.exchanges import Exchange
from toolbox_dtma.gateway.limits import RESPONSE_SIZE

if TYPE_CHECKING:
    from toolbox_dtma.gateway.connection import Connection

WRITE_STALL_SECONDS = 120.0
"""Longest time a client may take to accept bytes."""
WHOLE_BYTES = 64 * 1024
"""Answers up to this size are handed to the server part at once: the kernel takes as much from anybody."""


class Whole(web.Response):
    """An answer that is known to its end, written at once and past the layers that aiohttp has for those under way.

    In a profile of relayed calls they were a tenth of the samples. Whatever is not the common case goes their way: a
    client that speaks HTTP/1.0 or wants its connection closed, a worker that drains, an answer without body or type.
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes):
        """The values of `headers` must have been checked: nothing here looks for line breaks in them."""
        # What `web.Response` does here waits until it is needed.
        self._whole = status, headers, body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write it, or have aiohttp begin to. Raises `ConnectionError`."""
        status, headers, body = self._whole
        connection = cast("Connection", request.protocol)
        transport = request.transport
        if (
            transport is None
            or not body
            or "Content-Type" not in headers
            or not (status == 200 or status >= 400)
            or request.version != HttpVersion11
            or not request.keep_alive
            or connection.is_draining
        ):
            super().__init__(status=status, headers=headers, body=body or None)
            return await super().prepare(request)
        transport.write(_head(status, headers, len(body)) + body)
        self._eof_sent = self._keep_alive = True
        if transport.get_write_buffer_size():
            # One that sends requests and takes no answers must not be answered for ever.
            await request.writer.drain()
        return None


def _head(status: int, headers: Mapping[str, str], length: int) -> bytes:
    lines = [_begun(status), *(f"{name}: {value}" for name, value in headers.items())]
    lines.append(f"Content-Length: {length}\r\nDate: {_date(int(time.time()))}\r\n\r\n")
    return "\r\n".join(lines).encode("latin-1")


@lru_cache(maxsize=64)
def _begun(status: int) -> str:
    known = status in HTTPStatus.__members__.values()
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase if known else ''}"


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


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
