"""Container output: Docker's multiplexed stream, taken apart and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Protocol

from toolbox_dtma.engine.client import DockerClient

MAX_TAIL = 10_000
"""Most lines of history one call returns."""

MAX_BYTES = 16 * 1024 * 1024
"""Most bytes of history one call returns; a followed stream goes on after it, it is bounded by its reader."""

_HEADER = 8
_CHUNK = 64 * 1024


class ByteStream(Protocol):
    """What is needed of a stream reader, asyncio's or aiohttp's."""

    async def readexactly(self, n: int, /) -> bytes: ...
    async def read(self, n: int, /) -> bytes: ...


async def read_logs(
    client: DockerClient, container_id: str, *, tail: int, since: float | None, follow: bool
) -> AsyncGenerator[bytes]:
    """Output of a container, both streams in the order Docker recorded them."""
    left = MAX_BYTES
    async with client.logs(container_id, tail=max(0, min(tail, MAX_TAIL)), since=since, follow=follow) as stream:
        async for chunk in demultiplexed(stream):
            if follow:
                yield chunk
                continue
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                return


async def read_tail(client: DockerClient, container_id: str, *, lines: int) -> bytes:
    """The last lines, at once."""
    return b"".join([chunk async for chunk in read_logs(client, container_id, tail=lines, since=None, follow=False)])


async def demultiplexed(stream: ByteStream) -> AsyncGenerator[bytes]:
    """Payloads of Docker's frames: one byte stream number, three zero bytes, length, payload."""
    while True:
        try:
            header = await stream.readexactly(_HEADER)
        except asyncio.IncompleteReadError:
            return
        length = int.from_bytes(header[4:], "big")
        while length:
            chunk = await stream.read(min(length, _CHUNK))
            if not chunk:
                return
            length -= len(chunk)
            yield chunk
