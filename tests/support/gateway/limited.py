"""What tests of a connection's limits share: connections with them, clients that reach any worker, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from support.gateway.mcp_servers import ScriptedServer
from support.gateway.world import Connection, World
from toolbox_dtma.wire import GrantLimits


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
