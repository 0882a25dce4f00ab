"""Raw MCP over HTTP, for tests that look at what an SDK hides."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
from mcp.client.client import Client
from mcp.client.session import ElicitationFnT
from mcp.client.streamable_http import streamable_http_client

from support.gateway.world import Connection, World

MODERN = "2026-07-28"


def request(method: str, params: Any = None, id: Any = 1) -> dict[str, Any]:
    """A JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": id, "method": method, **({} if params is None else {"params": params})}


def call(tool: str, arguments: dict[str, Any] | None = None, id: Any = 1) -> dict[str, Any]:
    """A tools/call request."""
    return request("tools/call", {"name": tool, "arguments": arguments or {}}, id)


INITIALIZE = request(
    "initialize",
    {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}},
    "init",
)


def messages(response: httpx.Response) -> list[Any]:
    """Every JSON-RPC message of an answer, JSON or event stream."""
    if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
        return [response.json()]
    lines = response.text.splitlines()
    return [json.loads(line[5:]) for line in lines if line.startswith("data:") and line[5:].strip()]


class RawSession:
    """An initialised session of the handshake era."""

    def __init__(self, http: httpx.AsyncClient, connection: Connection, id: str):
        self.http = http
        self.connection = connection
        self.id = id

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a request within the session."""
        return {**self.connection.headers, "Mcp-Session-Id": self.id, "MCP-Protocol-Version": "2025-11-25"}

    async def post(self, message: Any, **headers: str) -> httpx.Response:
        """Send a message or a batch."""
        return await self.http.post(self.connection.url, json=message, headers={**self.headers, **headers})


async def open_session(http: httpx.AsyncClient, connection: Connection) -> RawSession:
    """Initialise a session."""
    answer = await http.post(connection.url, json=INITIALIZE, headers=connection.headers)
    assert answer.status_code == 200, answer.text
    session = RawSession(http, connection, answer.headers["Mcp-Session-Id"])
    assert (await session.post({"jsonrpc": "2.0", "method": "notifications/initialized"})).status_code == 202
    return session


@asynccontextmanager
async def sdk_client(
    world: World,
    connection: Connection,
    mode: str = "auto",
    *,
    elicitation_callback: ElicitationFnT | None = None,
) -> AsyncGenerator[Client]:
    """The SDK's client with nothing but URL, token and CA."""
    headers = {"Authorization": f"Bearer {connection.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, verify=world.tls.client_context(), timeout=15, trust_env=False) as http,
        Client(
            streamable_http_client(connection.url, http_client=http),
            mode=mode,
            elicitation_callback=elicitation_callback,
        ) as client,
    ):
        yield client
