"""Requests without a session, by hand, and a script that speaks for the process they share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from support.broker.client import Events, headers_of, path_of
from support.broker.programs import Script, Scripted
from support.gateway.mcp_http import MODERN

META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "by-hand", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
LISTEN = "subscriptions/listen"


def asking(method: str, id: Any = 1, token: Any = None, **params: Any) -> dict[str, Any]:
    """A complete request."""
    meta = META if token is None else {**META, "progressToken": token}
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": {**params, "_meta": meta}}


def calling(id: Any = 1, token: Any = None, **arguments: Any) -> dict[str, Any]:
    """A complete tools/call."""
    return asking("tools/call", id, token, name="x", arguments=arguments)


def stateless_headers(connection: str = "c-1", **more: str) -> dict[str, str]:
    """What a worker sends."""
    return {**headers_of(connection), "MCP-Protocol-Version": MODERN, **more}


async def post(
    http: httpx.AsyncClient, instance: str, body: Any, connection: str = "c-1", headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """Send a message, or bytes, and wait for the whole answer."""
    sent: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
    return await http.post(path_of(instance), headers=stateless_headers(connection, **(headers or {})), **sent)


@asynccontextmanager
async def streaming(
    http: httpx.AsyncClient, instance: str, body: Any, connection: str = "c-1"
) -> AsyncGenerator[Events]:
    """A POST whose answer is read as it comes."""
    headers = stateless_headers(connection)
    async with http.stream("POST", path_of(instance), headers=headers, json=body) as response:
        assert response.status_code == 200, await response.aread()
        yield Events(response)


DISCOVERED: dict[str, Any] = {"resultType": "complete", "supportedVersions": [MODERN], "capabilities": {"tools": {}}}


async def stateless_process(script: Script, tools: list[Any] | None = None) -> Scripted:
    """The next process, once it has said what it speaks. With `tools` it has listed them too."""
    process = await script.process()
    asked = await process.heard()
    assert asked["method"] == "server/discover" and asked["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"]
    process.say({"jsonrpc": "2.0", "id": asked["id"], "result": DISCOVERED})
    if tools is not None:
        await lists(process, tools)
    return process


async def lists(process: Scripted, tools: list[Any]) -> dict[str, Any]:
    """The next message, which asks for the tools, and gets them."""
    asked = await process.heard()
    assert asked["method"] == "tools/list", asked
    process.say({"jsonrpc": "2.0", "id": asked["id"], "result": {"tools": tools}})
    return asked


async def served(
    http: httpx.AsyncClient, instance: str, script: Script, connection: str = "c-1", *, known: bool = False
) -> Scripted:
    """A process that serves a connection and has answered its first request. `known`: it need not be asked before."""
    asked = asyncio.ensure_future(post(http, instance, asking("prompts/list", "first"), connection))
    process = await (script.process() if known else stateless_process(script))
    await answers(process, {})
    assert (await asked).status_code == 200
    return process


async def answers(process: Scripted, result: dict[str, Any]) -> dict[str, Any]:
    """The next request, which gets this result."""
    asked = await process.heard()
    process.say({"jsonrpc": "2.0", "id": asked["id"], "result": result})
    return asked


def result(id: Any, **members: Any) -> dict[str, Any]:
    """An answer."""
    return {"jsonrpc": "2.0", "id": id, "result": members}


def note(method: str, **params: Any) -> dict[str, Any]:
    """A notification."""
    return {"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params}


def progress(number: Any, step: int) -> dict[str, Any]:
    """How far a request is."""
    return note("progress", progressToken=number, progress=step)


def changed(subscription: Any, method: str = "tools/list_changed") -> dict[str, Any]:
    """Something on a subscription."""
    return note(method, _meta={SUBSCRIPTION: subscription})


async def begun(
    http: httpx.AsyncClient, instance: str, process: Scripted, *bodies: dict[str, Any]
) -> list[tuple[asyncio.Future[httpx.Response], dict[str, Any]]]:
    """Requests under way, in this order, each with what the process heard of it."""
    running: list[tuple[asyncio.Future[httpx.Response], dict[str, Any]]] = []
    for body in bodies:
        asked = asyncio.ensure_future(post(http, instance, body))
        running.append((asked, await process.heard()))
    return running


@asynccontextmanager
async def streaming_listen(
    http: httpx.AsyncClient, instance: str, process: Scripted, id: Any
) -> AsyncGenerator[tuple[Events, int]]:
    """A subscription that was acknowledged."""

    async def begins() -> int:
        number = (await process.heard())["id"]
        process.say(changed(number, "subscriptions/acknowledged"))
        return number

    number = asyncio.ensure_future(begins())
    async with streaming(http, instance, asking(LISTEN, id, notifications={})) as events:
        assert await events.next() == changed(id, "subscriptions/acknowledged")
        yield events, await number
