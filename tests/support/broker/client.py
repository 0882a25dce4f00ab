"""Talking to a broker as the gateway's worker does, and as an SDK client would through it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from support.gateway.mcp_http import INITIALIZE, messages, request

ACCEPT = "application/json, text/event-stream"


def path_of(instance: str) -> str:
    """Where an instance is found."""
    return f"/instances/{instance}/mcp"


@asynccontextmanager
async def unix_http(path: Path) -> AsyncGenerator[httpx.AsyncClient]:
    """A plain HTTP client of a unix socket."""
    transport = httpx.AsyncHTTPTransport(uds=str(path), limits=httpx.Limits(max_connections=None))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as http:
        yield http


@dataclass(frozen=True)
class RawSession:
    """A session by hand."""

    http: httpx.AsyncClient
    instance: str
    connection: str
    id: str

    @property
    def headers(self) -> dict[str, str]:
        """Of each of its requests."""
        return {**headers_of(self.connection), "Mcp-Session-Id": self.id}

    async def post(self, message: Any, **headers: str) -> httpx.Response:
        """Send a message or a batch, and wait for the whole answer."""
        return await self.http.post(path_of(self.instance), json=message, headers={**self.headers, **headers})

    async def call(self, method: str, params: Any = None, id: Any = 1) -> Any:
        """The one message that answers a request."""
        (answer,) = messages(await self.post(request(method, params, id)))
        return answer

    @asynccontextmanager
    async def streaming(self, method: str, message: Any = None) -> AsyncGenerator[Events]:
        """A GET, or a POST whose answer is read as it comes."""
        async with self.http.stream(method, path_of(self.instance), headers=self.headers, json=message) as response:
            assert response.status_code == 200, await response.aread()
            yield Events(response)

    async def delete(self) -> httpx.Response:
        """End it."""
        return await self.http.delete(path_of(self.instance), headers=self.headers)


class Events:
    """An event stream, event by event."""

    def __init__(self, response: httpx.Response):
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> Any:
        """The next message; None at the end of the stream."""
        async for line in self._lines:
            if line.startswith("data:"):
                return json.loads(line[5:])
        return None


def headers_of(connection: str) -> dict[str, str]:
    """What a worker sends for a connection."""
    return {"Mcp-Toolbox-Connection": connection, "Accept": ACCEPT, "Content-Type": "application/json"}


async def initialize(http: httpx.AsyncClient, instance: str, connection: str = "c-1", **headers: str) -> httpx.Response:
    """Ask for a session."""
    return await http.post(path_of(instance), json=INITIALIZE, headers={**headers_of(connection), **headers})


async def open_session(http: httpx.AsyncClient, instance: str, connection: str = "c-1") -> RawSession:
    """A session."""
    answer = await initialize(http, instance, connection)
    assert answer.status_code == 200, answer.text
    return RawSession(http, instance, connection, answer.headers["Mcp-Session-Id"])


@asynccontextmanager
async def sdk_client(path: Path, instance: str, connection: str = "c-1", **options: Any) -> AsyncGenerator[Client]:
    """The SDK's client over the broker's socket."""
    transport = httpx2.AsyncHTTPTransport(uds=str(path))
    headers = {"Mcp-Toolbox-Connection": connection}
    async with (
        httpx2.AsyncClient(transport=transport, headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"http://localhost{path_of(instance)}", http_client=http), **options) as client,
    ):
        yield client
