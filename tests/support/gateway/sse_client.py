"""A client of HTTP+SSE that hides nothing: what came on its stream, and what each POST was answered."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
from mcp.client.client import Client
from mcp.client.session import ElicitationFnT, SamplingFnT
from mcp.client.sse import sse_client as sdk_transport

from support.gateway.world import Connection, World
from support.tcp import is_connected, sockets_of

STREAM = "text/event-stream"


def sse_url(connection: Connection) -> str:
    """What an agent that speaks HTTP+SSE is given."""
    return connection.url.removesuffix("/mcp") + "/sse"


class SseClient:
    """One stream, read in the background."""

    def __init__(self, http: httpx.AsyncClient, connection: Connection):
        self._http = http
        self.connection = connection
        self.reference = ""
        """What the `endpoint` event said."""
        self.messages: list[dict[str, Any]] = []
        self.comments = 0
        self.status = 0
        self.port = 0
        """Of the client's end of the stream's connection."""
        self._changed = asyncio.Condition()
        self.ended = asyncio.Event()
        self.how = ""
        """`ended` or `cut`, once it has."""
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        headers = {"Authorization": f"Bearer {self.connection.token}", "Accept": STREAM}
        try:
            async with self._http.stream("GET", sse_url(self.connection), headers=headers, timeout=60) as answer:
                self.status = answer.status_code
                network: Any = answer.extensions["network_stream"]
                self.port = network.get_extra_info("client_addr")[1]
                await self._events(answer)
            self.how = "ended"
        except httpx.TransportError:
            self.how = "cut"
        finally:
            self.ended.set()
            async with self._changed:
                self._changed.notify_all()

    async def _events(self, answer: httpx.Response) -> None:
        kind, data = "message", ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                data = line[6:]
            elif line.startswith(":"):
                self.comments += 1
            elif not line and data:
                async with self._changed:
                    if kind == "endpoint":
                        self.reference = data
                    else:
                        self.messages.append(json.loads(data))
                    self._changed.notify_all()
                kind, data = "message", ""

    async def until(self, what: Callable[[], Any], seconds: float = 15) -> Any:
        """What this gives, once it is true."""
        async with asyncio.timeout(seconds), self._changed:
            while not (found := what()):
                assert not self.ended.is_set(), (self.how, self.messages)
                await self._changed.wait()
            return found

    async def answer(self, id: object, seconds: float = 15) -> dict[str, Any]:
        """The answer to a request."""

        def found() -> dict[str, Any] | None:
            return next((m for m in self.messages if m.get("id") == id and "method" not in m), None)

        return await self.until(found, seconds)

    async def post(self, message: Any, http: httpx.AsyncClient | None = None, **headers: str) -> httpx.Response:
        """POST one message to where the stream said."""
        url = str(httpx.URL(sse_url(self.connection)).join(self.reference))
        return await (http or self._http).post(url, json=message, headers={**self.connection.headers, **headers})

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request that is accepted."""
        assert (await self.post(message)).status_code == 202
        return await self.answer(message["id"])

    async def initialize(self, version: str = "2024-11-05", **capabilities: Any) -> dict[str, Any]:
        """Begin a session, as clients of this transport do."""
        info = {"name": "raw", "version": "0"}
        params = {"protocolVersion": version, "capabilities": capabilities, "clientInfo": info}
        message = {"jsonrpc": "2.0", "id": "init", "method": "initialize", "params": params}
        answer = await self.ask(message)
        assert (await self.post({"jsonrpc": "2.0", "method": "notifications/initialized"})).status_code == 202
        return answer["result"]

    async def close(self) -> None:
        """Hang up."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@asynccontextmanager
async def sse_client(http: httpx.AsyncClient, connection: Connection) -> AsyncGenerator[SseClient]:
    """A stream that is open."""
    client = SseClient(http, connection)
    try:
        await client.until(lambda: client.reference)
        yield client
    finally:
        await client.close()


def peer_address(pid: int) -> str:
    """Where a worker listens for the others."""
    sockets = sockets_of(pid)
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    own = [line for line in lines if "@magic-toolbox-gateway/" in line[-1] and line[6] in sockets]
    # It listens; what was accepted has the same name.
    (name,) = {line[-1] for line in own}
    return name.replace("@", "\0", 1)


def worker_of(world: World, client: SseClient) -> int:
    """The pid of the worker that has a stream."""
    (pid,) = [hello.pid for hello in world.dtma.workers if is_connected(hello.pid, client.port)]
    return pid


@asynccontextmanager
async def sdk_sse_client(
    url: str,
    token: str,
    context: ssl.SSLContext,
    mode: str = "auto",
    *,
    elicitation_callback: ElicitationFnT | None = None,
    sampling_callback: SamplingFnT | None = None,
) -> AsyncGenerator[Client]:
    """The SDK's client over its own transport of this kind, with nothing but URL, token and CA."""

    def http(
        headers: dict[str, str] | None = None, timeout: httpx2.Timeout | None = None, auth: httpx2.Auth | None = None
    ) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(headers=headers, timeout=timeout, auth=auth, verify=context, trust_env=False)

    transport = sdk_transport(url, headers={"Authorization": f"Bearer {token}"}, httpx_client_factory=http)
    async with Client(
        transport, mode=mode, elicitation_callback=elicitation_callback, sampling_callback=sampling_callback
    ) as client:
        yield client
