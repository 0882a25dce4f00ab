"""Sessions of one stdio server see nothing of each other: no process, no file, no environment, no message."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from mcp import Client
from mcp_types import TextContent

from localstack import agent
from support.hosts import prying_server
from support.hosts.stdio_host import StdioHost

pytestmark = pytest.mark.integration


@pytest.fixture
def prying(stdio_host: StdioHost) -> Generator[str]:
    """A server that looks around."""
    name = str(uuid.uuid4())
    env = [{"name": "HOME", "value": "/tmp"}]
    stdio_host.deploy(name, command=list(prying_server.COMMAND), env=env)
    stdio_host.await_phase(name, "Ready")
    yield name
    stdio_host.remove(name)
    assert not stdio_host.sessions(name)


async def said(client: Client, tool: str, **arguments: Any) -> str:
    """The text that a tool answers with."""
    (block,) = (await client.call_tool(tool, arguments)).content
    assert isinstance(block, TextContent)
    return block.text


async def test_two_agents_and_two_sessions_of_one_see_nothing_of_each_other(stdio_host: StdioHost, prying: str) -> None:
    (_, one), (_, two) = stdio_host.grant(prying), stdio_host.grant(prying)
    words = [f"word-{uuid.uuid4().hex}" for _ in range(3)]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(stdio_host.client(prying, token)) for token in (one, one, two)]
        for client, word in zip(clients, words, strict=True):
            assert await said(client, "leave", word=word) == "left"
        views = [await said(client, "look") for client in clients]
        containers = [container[:12] for container in stdio_host.sessions(prying)]
    for view, mine in zip(views, words, strict=True):
        # Each way of looking finds what is there: a view that shows nothing would prove nothing.
        assert f"called-{mine}" in view and f"SECRET=env-{mine}" in view and view.count(mine) >= 6, view
        assert [word for word in words if word in view] == [mine]
        # Environments are the server's: nothing in them is of a session, or names one.
        assert not [container for container in containers if container in view]
    async with stdio_host.client(prying, one) as later:
        assert not [word for word in words if word in await said(later, "look")], "nothing outlives its session"


@asynccontextmanager
async def posting(stdio_host: StdioHost, instance: str, token: str) -> AsyncGenerator[Any]:
    """Sends a request, perhaps in a session; status, session and message of the answer."""
    secret = {"token": token, "ca.crt": stdio_host.host.ca_file.read_text()}
    async with agent.http_client(secret) as http:

        async def post(method: str, params: dict[str, Any], session: str | None = None) -> tuple[int, str, Any]:
            headers = {"Accept": "application/json, text/event-stream"}
            headers |= {"Mcp-Session-Id": session} if session else {}
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            answer = await http.post(f"{stdio_host.url}/servers/{instance}/mcp", json=body, headers=headers)
            return answer.status_code, answer.headers.get("Mcp-Session-Id", ""), json.loads(answer.content)

        yield post


async def test_the_name_of_a_session_is_of_no_use_to_another_agent(stdio_host: StdioHost, prying: str) -> None:
    (_, one), (_, two) = stdio_host.grant(prying), stdio_host.grant(prying)
    hello: dict[str, Any] = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "x", "version": "1"},
    }
    look: dict[str, Any] = {"name": "look", "arguments": {}}
    async with posting(stdio_host, prying, one) as mine, posting(stdio_host, prying, two) as theirs:
        _, session, _ = await mine("initialize", hello)
        assert (await mine("tools/call", look, session))[0] == 200
        status, _, answer = await theirs("tools/call", look, session)
        assert (status, answer["error"]["code"]) == (404, -32001)
        assert (await mine("tools/call", look, session))[0] == 200
