"""A loopback HTTP proxy that adds the agent's token, for the conformance suite, which cannot send one.

It changes nothing else: the suite's own authority in `Host` becomes the gateway's, any other `Host` goes up as it is.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from support.gateway.threads import LoopThread
from support.gateway.tls import HOST
from support.gateway.world import Connection

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "content-length"})
_OF_THE_CLIENT = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
"""What the HTTP client would add by itself."""


def _forwarded(headers: CIMultiDictProxy[str], own: str, gateway: str) -> CIMultiDict[str]:
    kept = CIMultiDict(headers)
    for name in [name for name in kept if name.lower() in _HOP_BY_HOP]:
        kept.popall(name, None)
    if kept.get("Host") == own:
        kept["Host"] = gateway
    return kept


@contextmanager
def bearer_proxy(connection: Connection, tls: ssl.SSLContext) -> Generator[str]:
    """The URL at which the connection can be used without its token."""
    target = urlsplit(connection.url)
    threads = LoopThread()

    async def start() -> tuple[aiohttp.ClientSession, web.Server, asyncio.Server]:
        client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, connect=10),
            skip_auto_headers=_OF_THE_CLIENT,
            auto_decompress=False,
        )

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            own = f"{HOST}:{request.url.port}"
            headers = _forwarded(request.headers, own, target.netloc)
            headers["Authorization"] = f"Bearer {connection.token}"
            url = URL(f"{target.scheme}://{target.netloc}{request.raw_path}", encoded=True)
            body = await request.read() if request.can_read_body else None
            async with client.request(request.method, url, headers=headers, data=body, allow_redirects=False) as answer:
                relayed = web.StreamResponse(status=answer.status)
                relayed.headers.extend(_forwarded(answer.headers, own, own))
                await relayed.prepare(request)
                async for chunk in answer.content.iter_any():
                    await relayed.write(chunk)
                return relayed

        # A client that hangs up cancels its handler, and so the request to the gateway.
        http = web.Server(handle, handler_cancellation=True)
        return client, http, await asyncio.get_running_loop().create_server(http, HOST, 0)

    client, http, server = threads.call(start())

    async def stop() -> None:
        server.close()
        await http.shutdown(0.1)
        await client.close()

    try:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}{target.path}"
    finally:
        threads.call(stop())
        threads.close()
