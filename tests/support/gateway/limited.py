"""What tests of a connection's limits share: calls that wait, and clients that reach any worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from aiohttp import web

from support.gateway.mcp_http import MODERN, call, request
from support.gateway.mcp_servers import ScriptedServer, Seen
from support.gateway.threads import eventually
from support.gateway.world import Connection, World
from toolbox_dtma.wire import GrantLimits

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


@asynccontextmanager
async def fresh(world: World) -> AsyncGenerator[httpx.AsyncClient]:
    """A client whose every request is a TCP connection of its own, so that any worker may get it."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(
        verify=world.tls.client_context(), timeout=15, trust_env=False, limits=limits
    ) as client:
        yield client


def limited(world: World, server: ScriptedServer, **limits: int) -> Connection:
    """A connection with these limits."""
    return world.connect(world.instance(server.port), limits=GrantLimits(**limits))


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


async def ended(task: asyncio.Task[httpx.Response]) -> int:
    """The status a call ended with; 0 if its connection broke."""
    try:
        return (await asyncio.wait_for(task, 15)).status_code
    except httpx.TransportError:
        return 0


def refusal(answer: httpx.Response, *, status: int = 200) -> dict[str, Any]:
    """The one error of a refused request."""
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == -32000
    return answer.json()
