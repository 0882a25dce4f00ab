"""Sessions of a stdio server in the middle of a call, and what their agents hear when something breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from localstack import agent
from support.hosts import prying_server
from support.hosts.stdio_host import StdioHost

HELLO: dict[str, Any] = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "busy", "version": "1"},
}
NOTICED = 10.0
"""Seconds in which whoever waits has to hear that something broke."""


@dataclass(frozen=True)
class Busy:
    """One session, of a connection of its own, in which `wait` runs, which is never answered."""

    http: httpx2.AsyncClient
    url: str
    session: str
    call: asyncio.Task[Any]

    async def ask(self, method: str, params: dict[str, Any] | None = None, id_: Any = 1) -> Any:
        """Status and message of the answer to a request."""
        return await post(self.http, self.url, self.session, method, params or {}, id_)

    async def works(self) -> bool:
        """Whether its process answers, and goes on with the call."""
        status, answer = await self.ask("ping")
        return status == 200 and answer["result"] == {} and not self.call.done()

    async def reached(self) -> None:
        """Wait until the process has got the call."""
        look: dict[str, Any] = {"name": "look", "arguments": {}}
        async with asyncio.timeout(NOTICED):
            while True:
                if prying_server.WAITING in str(await self.ask("tools/call", look)):
                    return
                await asyncio.sleep(0.02)

    async def broken(self) -> str:
        """What the call ends with, soon and properly: the message of a JSON-RPC error for its id."""
        async with asyncio.timeout(NOTICED):
            _, answer = await self.call
        return error(answer, "wait")

    async def refused(self) -> int:
        """The status of what comes later: a proper error too."""
        async with asyncio.timeout(NOTICED):
            status, answer = await self.ask("ping", id_="later")
        error(answer, "later")
        return status


def error(answer: Any, id_: Any) -> str:
    """The message of a JSON-RPC error with an id; anything else is an `AssertionError`."""
    assert (answer["jsonrpc"], answer["id"]) == ("2.0", id_), answer
    assert isinstance(answer["error"]["code"], int) and answer["error"]["message"], answer
    return str(answer["error"]["message"])


async def post(
    http: httpx2.AsyncClient, url: str, session: str, method: str, params: dict[str, Any], id_: Any
) -> tuple[int, Any]:
    """Status and message of the one answer to a request."""
    headers = {"Accept": "application/json, text/event-stream", "Mcp-Session-Id": session}
    body = {"jsonrpc": "2.0", "id": id_, "method": method, "params": params}
    answer = await http.post(url, json=body, headers=headers)
    return answer.status_code, answer.json()


@asynccontextmanager
async def busy(host: StdioHost, instance: str) -> AsyncGenerator[Busy]:
    """One of them."""
    _, token = host.grant(instance)
    url = f"{host.url}/servers/{instance}/mcp"
    async with agent.http_client({"token": token, "ca.crt": host.host.ca_file.read_text()}) as http:
        begun = await http.post(
            url,
            json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO},
            headers={"Accept": "application/json, text/event-stream"},
        )
        assert begun.status_code == 200, begun.text
        session = begun.headers["Mcp-Session-Id"]
        waiting = post(http, url, session, "tools/call", {"name": "wait", "arguments": {}}, "wait")
        call = asyncio.create_task(waiting)
        try:
            yield Busy(http, url, session, call)
        finally:
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await http.delete(url, headers={"Mcp-Session-Id": session})


@asynccontextmanager
async def all_busy(host: StdioHost, instance: str, number: int) -> AsyncGenerator[list[Busy]]:
    """Several, whose processes have all got their call."""
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(busy(host, instance)) for _ in range(number)]
        for each in sessions:
            await each.reached()
        yield sessions


async def served(host: StdioHost, instance: str, token: str, since: float) -> float:
    """Seconds from a moment of `time.monotonic()` until a new session is served."""
    url = f"{host.url}/servers/{instance}/mcp"
    last: Any = None
    async with agent.http_client({"token": token, "ca.crt": host.host.ca_file.read_text()}) as http:
        while time.monotonic() - since < 30:
            begun = await http.post(
                url,
                json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO},
                headers={"Accept": "application/json, text/event-stream"},
            )
            last = begun.text
            if begun.status_code == 200 and "result" in begun.json():
                status, answer = await post(http, url, begun.headers["Mcp-Session-Id"], "ping", {}, 1)
                assert (status, answer["result"]) == (200, {})
                took = time.monotonic() - since
                await http.delete(url, headers={"Mcp-Session-Id": begun.headers["Mcp-Session-Id"]})
                return took
            await asyncio.sleep(0.05)
    raise AssertionError(f"no new session: {last}")
