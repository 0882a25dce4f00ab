"""DTMA with the real session broker and the real probe, in front of a server of the SSE transport."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from localstack.kubernetes import REPOSITORY
from localstack.ports import free_port
from support.broker.client import initialize, unix_http
from support.broker.sse_script import STREAM, Exchange, SseScript, sse_script
from support.dtma.host import FAST, DtmaHost, eventually, grant_body, sse_body
from support.dtma.probing import ProbingWorker
from support.dtma.worker import connected
from support.gateway.mcp_http import request
from toolbox_dtma.gateway.headers import CONNECTION, SESSION
from toolbox_dtma.sessions.process import Child, spawner

pytestmark = pytest.mark.component

TOOL = {"name": "get_time", "inputSchema": {"type": "object"}}


def result(asked: Any) -> dict[str, Any]:
    if asked["method"] == "initialize":
        info = {"name": "talking", "version": "1"}
        version = asked["params"]["protocolVersion"]
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
    return {"tools": [TOOL]}


@asynccontextmanager
async def talking() -> AsyncGenerator[SseScript]:
    """A server with one tool."""
    async with sse_script() as server:
        streams: dict[str, Exchange] = {}

        async def begin() -> None:
            while True:
                stream = await server.streams.get()
                where = f"/messages?s={len(streams)}"
                streams[where] = stream
                stream.begin(where)

        async def answer() -> None:
            while True:
                post = await server.posts.get()
                asked = post.message
                if "id" in asked:
                    streams[post.path].say({"jsonrpc": "2.0", "id": asked["id"], "result": result(asked)})

        tasks = [asyncio.create_task(begin()), asyncio.create_task(answer())]
        try:
            yield server
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest_asyncio.fixture
async def api(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of a DTMA with a real broker, and a worker that probes."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "dtma"))
    start = spawner(os.getuid(), os.getgid())

    async def spawn(listener: socket.socket, control: socket.socket) -> Child:
        return await start(listener, control)

    patient = {"broker_end": 10.0, "broker_patience": 30.0}
    timings = FAST.model_copy(update={**patient, "probe_start_deadline": 0.6})
    host = DtmaHost(open_folder, spawn=spawn, timings=timings)
    await host.start()
    await host.claimed()
    try:
        async with connected(ProbingWorker(), host.socket_path), host.client() as client:
            yield client
    finally:
        await host.stop()


async def seen(api: httpx.AsyncClient, phase: str, instance: str = "i-1", message: str = "") -> dict[str, Any]:
    async def look() -> dict[str, Any]:
        return (await api.get(f"/v2/instances/{instance}")).raise_for_status().json()["observed"]

    def good(seen: dict[str, Any]) -> bool:
        return seen["phase"] == phase and message in seen["message"]

    return await eventually(look, good, f"{phase} {message}", seconds=40)


async def test_a_server_becomes_ready_and_serves_a_connection_until_it_is_revoked(
    api: httpx.AsyncClient, open_folder: Path
) -> None:
    async with talking() as server:
        (await api.put("/v2/instances/i-1", json=sse_body(port=server.upstream.port))).raise_for_status()
        probed = (await seen(api, "Ready"))["probe"]
        assert probed["serverInfo"]["name"] == "talking" and probed["toolsTotal"] == 1
        (await api.put("/v2/grants/c-1", json=grant_body())).raise_for_status()
        async with unix_http(open_folder / "run" / "broker.sock") as http:
            begun = await initialize(http, "i-1")
            headers = {CONNECTION: "c-1", SESSION: begun.headers[SESSION]}

            async def listed() -> httpx.Response:
                return await http.post("/instances/i-1/mcp", json=request("tools/list"), headers=headers)

            assert (await listed()).json()["result"]["tools"] == [TOOL]
            assert (await initialize(http, "i-1", "stranger")).status_code == 404
            where = {"namespace": "team-a", "name": "bot-time"}
            (await api.delete("/v2/grants/c-1", params=where)).raise_for_status()
            await eventually(listed, lambda answer: answer.status_code == 404, "gone")
            assert (await initialize(http, "i-1")).status_code == 404


def not_found(stream: Exchange) -> None:
    stream.refuse(404)


def hangs_up(stream: Exchange) -> None:
    stream.end()


def says(raw: bytes) -> Callable[[Exchange], None]:
    return lambda stream: stream.write(raw)


BAD: dict[str, tuple[Callable[[Exchange], None] | None, str, str]] = {
    "nothing-listens": (None, "PortNotListening", "Nothing listens on the server's port"),
    "wrong-path": (not_found, "ProbeFailed", "The server answered GET /sse with HTTP 404"),
    "web-page": (
        says(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi"),
        "ProbeFailed",
        "with text/html in place of an event stream",
    ),
    "elsewhere": (
        says(STREAM + b"event: endpoint\ndata: http://evil.example/messages\n\n"),
        "ProbeFailed",
        "another origin than its own: http://evil.example/messages",
    ),
    "hangs-up": (hangs_up, "ProbeFailed", "The server broke off its answer before an endpoint event"),
}


async def test_a_report_says_why_a_server_is_not_ready(api: httpx.AsyncClient) -> None:
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:

        async def behave(server: SseScript, as_it_does: Callable[[Exchange], None]) -> None:
            while True:
                as_it_does(await server.streams.get())

        behaving: list[asyncio.Task[None]] = []
        for name, (behaves, _, _) in BAD.items():
            port = free_port()
            if behaves is not None:
                server = await stack.enter_async_context(sse_script())
                port = server.upstream.port
                behaving.append(group.create_task(behave(server, behaves)))
            body = sse_body(uid=name, name=name, port=port)
            (await api.put(f"/v2/instances/{name}", json=body)).raise_for_status()
        for name, (_, reason, message) in BAD.items():
            found = await seen(api, "Error", name, message)
            assert found["reason"] == reason, found
        for task in behaving:
            task.cancel()
