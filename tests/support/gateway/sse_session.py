"""A stream's own client of /mcp, before a /mcp as a test wants it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from toolbox_dtma.gateway import parsing
from toolbox_dtma.gateway.clients import Clients
from toolbox_dtma.gateway.http_sse.incoming import Incoming
from toolbox_dtma.gateway.http_sse.session import (
    Patience,
    Session,
)

STREAM = "text/event-stream"
QUICK = Patience(ordered=0.2, delete=0.2, resume=0.01, first_back_off=0.01, longest_back_off=0.02, steady=60.0)
SECONDS = 10.0


@dataclass
class Seen:
    """A request as /mcp got it."""

    method: str
    headers: dict[str, str]
    source: str | None
    message: Any

    @property
    def name(self) -> str:
        """What it is about."""
        return self.method if self.message is None else self.message.get("method", "response")


Answer = Callable[[web.BaseRequest, Seen], Awaitable[web.StreamResponse]]


def result(seen: Seen, **members: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": seen.message["id"], "result": members}


async def ordinary(_request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
    """A server of JSON answers, with sessions and without a GET stream."""
    if seen.method == "GET":
        return web.Response(status=405)
    if seen.method == "DELETE" or "id" not in seen.message:
        return web.Response(status=202)
    if seen.name == "initialize":
        return web.json_response(result(seen, protocolVersion="2024-11-05"), headers={"Mcp-Session-Id": "s1"})
    return web.json_response(result(seen))


@dataclass
class Mcp:
    """The worker's own /mcp, as a test wants it."""

    answer: Answer = ordinary
    seen: list[Seen] = field(default_factory=list[Seen])
    hung_up: int = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        seen = Seen(request.method, dict(request.headers), request.remote, json.loads(body) if body else None)
        self.seen.append(seen)
        try:
            return await self.answer(request, seen)
        except asyncio.CancelledError:
            self.hung_up += 1
            raise

    @property
    def names(self) -> list[str]:
        return [seen.name for seen in self.seen]

    async def has(self, *names: str) -> None:
        """Wait until these requests came, in this order."""
        async with asyncio.timeout(SECONDS):
            while self.names != list(names):
                assert len(self.names) <= len(names), self.names
                await asyncio.sleep(0.001)


class Client:
    """What a client of HTTP+SSE sends and gets."""

    def __init__(self, session: Session, clients: Clients, broken: list[BaseException]):
        self.session = session
        self.clients = clients
        self.broken = broken

    def send(self, message: Any, **headers: str) -> None:
        raw = json.dumps(message).encode()
        self.session.accept(
            Incoming(raw, parsing.parse_body(raw), {"Host": "h", "Authorization": "Bearer t", **headers})
        )

    def request(self, method: str, id: Any = 1, **params: Any) -> None:
        self.send({"jsonrpc": "2.0", "id": id, "method": method, "params": params})

    def notify(self, method: str, **params: Any) -> None:
        self.send({"jsonrpc": "2.0", "method": method, "params": params})

    async def gets(self) -> Any:
        """The next message; None at the end."""
        event = await self.session.outbox.take(SECONDS)
        if event is None:
            return None
        head, _, data = event.partition(b"\ndata: ")
        assert head == b"event: message" and data.endswith(b"\n\n"), event
        return json.loads(data)

    async def initialize(self, **params: Any) -> Any:
        self.request("initialize", "init", **params)
        return await self.gets()


async def events(request: web.BaseRequest, *lines: str, **headers: str) -> web.StreamResponse:
    """An event stream that ends."""
    response = web.StreamResponse(headers={"Content-Type": STREAM, **headers})
    await response.prepare(request)
    for line in lines:
        await response.write(line.encode())
    return response


async def never() -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError
