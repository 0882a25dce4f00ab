"""Servers to put behind a gateway: real ones written with the `mcp` SDK, and one that sends whatever a test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from aiohttp import web
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.streamable_http import EventStore

from localstack.ports import free_port
from support.gateway.threads import LoopThread, eventually
from support.gateway.tls import HOST
from toolbox_dtma.link.messages import Surface

EVERYDAY = Surface(
    tools=("get_time", "get_secret", "echo", "wait_long"),
    prompts=("greet", "scold"),
    resources=("docs://one", "docs://secret", "docs://pages/{page}"),
)


def everyday_server() -> tuple[MCPServer[Any], threading.Event]:
    """What an agent may or may not see; the event says that `wait_long` has begun."""
    server: MCPServer[Any] = MCPServer("everyday", version="1.2.3")
    begun = threading.Event()

    @server.tool()
    def get_time() -> str:
        """The time, which never changes here."""
        return "twelve"

    @server.tool()
    def get_secret() -> str:
        """Something not for everyone."""
        return "hidden"

    @server.tool()
    def echo(text: str) -> str:
        """The same again."""
        return text

    @server.prompt()
    def greet() -> str:
        """A friendly word."""
        return "hello"

    @server.prompt()
    def scold() -> str:
        """An unfriendly one."""
        return "no"

    @server.resource("docs://one")
    def one() -> str:
        """A page for everyone."""
        return "one"

    @server.resource("docs://secret")
    def secret() -> str:
        """A page not for everyone."""
        return "hidden"

    @server.resource("docs://pages/{page}")
    def page(page: str) -> str:
        """Any number of pages."""
        return f"page {page}"

    @server.tool()
    async def wait_long(ctx: Context[Any], seconds: float) -> str:
        """Reports progress until the time is over."""
        begun.set()
        for step in range(int(seconds * 20)):
            await ctx.report_progress(step)
            await asyncio.sleep(0.05)
        return "waited"

    return server, begun


@dataclass(frozen=True)
class RealServer:
    """A running MCP server."""

    port: int
    begun: threading.Event
    surface: Surface = EVERYDAY

    @property
    def tools(self) -> tuple[str, ...]:
        """Names of its tools."""
        return self.surface.tools


@contextmanager
def real_server(*, json_response: bool = False, events: EventStore | None = None) -> Generator[RealServer]:
    """An SDK server on loopback, in a thread; with `events` its streams can be resumed."""
    server, begun = everyday_server()
    port = free_port()
    app = server.streamable_http_app(json_response=json_response, event_store=events)
    uvi = uvicorn.Server(
        uvicorn.Config(app, host=HOST, port=port, log_level="critical", ws="none", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=uvi.run, daemon=True)
    thread.start()
    try:
        eventually(lambda: uvi.started, "the MCP server starts")
        yield RealServer(port, begun)
    finally:
        uvi.should_exit = True
        thread.join(10)


@dataclass(frozen=True)
class Seen:
    """A request as it arrived at a server."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


Answer = Callable[[web.BaseRequest, Seen], Awaitable[web.StreamResponse]]


@dataclass
class ScriptedServer:
    """Answers as `answer` says, and remembers what it got."""

    port: int
    answer: Answer
    seen: list[Seen] = field(default_factory=list[Seen])
    open: int = 0
    """Requests being answered now."""


async def accepted(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
    """202 to everything."""
    return web.Response(status=202)


@contextmanager
def scripted_server(answer: Answer = accepted) -> Generator[ScriptedServer]:
    """A raw HTTP server on loopback, in a thread."""
    threads = LoopThread()
    script = ScriptedServer(0, answer)
    transports: set[asyncio.Transport] = set()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        seen = Seen(request.method, request.raw_path, tuple(request.headers.items()), await request.read())
        script.seen.append(seen)
        if request.transport is not None:
            transports.add(request.transport)
        script.open += 1
        try:
            return await script.answer(request, seen)
        finally:
            script.open -= 1

    async def start() -> tuple[asyncio.Server, web.Server]:
        http = web.Server(handle, handler_cancellation=True)
        server = await asyncio.get_running_loop().create_server(http, HOST, 0)
        script.port = server.sockets[0].getsockname()[1]
        return server, http

    server, http = threads.call(start())

    async def stop() -> None:
        for listening in server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        # What was accepted in this moment becomes a connection, which is then closed like the others: not of a server
        # that is closed already, which asyncio would leave open.
        for _ in range(3):
            await asyncio.sleep(0)
        server.close()
        transports = [each.transport for each in http.connections]
        await http.shutdown(0.1)
        for transport in transports:
            if transport is not None:
                # One with bytes that nobody takes would otherwise outlive its loop.
                transport.abort()
        # Each connection learns of its end in the loop's next round.
        await asyncio.sleep(0)

    try:
        yield script
    finally:
        threads.call(stop())
        threads.close()


def json_answer(document: Any, **more: Any) -> Answer:
    """Always the same JSON."""

    async def answer(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        return web.json_response(document, **more)

    return answer


def raw_answer(body: bytes, content_type: str, *, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """Always the same bytes."""

    async def answer(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers={"Content-Type": content_type, **(headers or {})})

    return answer
