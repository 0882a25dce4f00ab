"""Calls that a server holds for as long as a test wants, and clients that hang up on them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from aiohttp import web

from support.async_poll import until
from support.gateway.mcp_http import MODERN, call, request
from support.gateway.mcp_servers import ScriptedServer, Seen
from support.gateway.threads import eventually
from support.gateway.world import Connection, World
from support.tcp import End, State, ends

META = {"_meta": {"io.modelcontextprotocol/protocolVersion": MODERN}}
MODERN_HEADERS = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": "x"}


class Held:
    """A server that answers when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def answer(self, _request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        """Wait, then answer with an empty result."""
        self._loop = asyncio.get_running_loop()
        if b'"method":"ping"' in seen.body and not seen.body.startswith(b"["):
            return web.json_response({"jsonrpc": "2.0", "id": 1, "result": {}})
        await self.go.wait()
        return web.json_response({"jsonrpc": "2.0", "id": 1, "result": {}})

    def release(self) -> None:
        """Answer everything that waits, and what comes."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.go.set)


async def post(http: httpx.AsyncClient, connection: Connection, message: Any, **headers: str) -> httpx.Response:
    """Send a message."""
    return await http.post(connection.url, json=message, headers={**connection.headers, **headers})


async def start(
    http: httpx.AsyncClient, connection: Connection, script: ScriptedServer, *, calls: int = 1, modern: bool = False
) -> list[asyncio.Task[httpx.Response]]:
    """Calls that the server has and does not answer."""
    message = request("tools/call", {"name": "x", **META}) if modern else call("x")
    headers = MODERN_HEADERS if modern else {}
    before = len(script.seen)
    started = [asyncio.create_task(post(http, connection, message, **headers)) for _ in range(calls)]
    await asyncio.to_thread(eventually, lambda: len(script.seen) == before + calls, "the server has the calls")
    return started


async def hang_up(world: World, *requests: asyncio.Task[Any]) -> None:
    """Give requests up, which closes their connections, and wait until the gateway has seen it.

    A server that answers before the gateway looked finds a client that still waits, as far as anybody can tell.
    """
    for each in requests:
        each.cancel()
    await asyncio.gather(*requests, return_exceptions=True)

    def unseen() -> list[End]:
        return [end for end in ends() if end.port == world.port and end.state is State.CLOSE_WAIT]

    await until("the gateway has closed its side", unseen, lambda found: not found)
