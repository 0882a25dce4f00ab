"""A published server of the SSE transport in a container of its own, through everything that is real: an agent of
streamable HTTP, gateway, session broker, DTMA and Docker."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CreateMessageResult, ElicitResult, TextContent

from localstack import agent, images
from localstack.docker import Engine
from support.engine.images import docker
from support.hosts.stdio_host import StdioHost
from support.poll import until
from toolbox_dtma.engine.names import LABEL_HOST, LABEL_INSTANCE

pytestmark = pytest.mark.integration

EVERYTHING: dict[str, Any] = {
    "name": "everything-sse", "transport": "sse", "port": 3001, "path": "/sse", "sessions": None,
    "command": [], "args": ["sse"], "env": [{"name": "PORT", "value": "3001"}],
    "limits": {"memoryBytes": 256 * 1024 * 1024, "cpuMillis": 1000, "pids": 64},
}  # fmt: skip


@pytest.fixture(scope="module")
def everything(stdio_host: StdioHost, docker_engine: Engine) -> Generator[str]:
    """The protocol's reference server, ready."""
    name = str(uuid.uuid4())
    stdio_host.deploy(name, image=images.built(docker_engine, "everything"), **EVERYTHING)
    seen = stdio_host.await_phase(name, "Ready")
    assert seen["container"]["state"] == "running" and seen["sessions"] is None
    assert seen["probe"]["serverInfo"]["name"].endswith("everything")
    assert {"echo", "get-sum"} <= {tool["name"] for tool in seen["probe"]["tools"]}
    yield name
    where = {"uid": name, "namespace": "team-a", "name": "everything-sse"}
    stdio_host.api.delete(f"/v2/instances/{name}", params=where).raise_for_status()


def container(stdio_host: StdioHost, instance: str) -> str:
    """The id of its only container."""
    labels = [f"--filter=label={LABEL_HOST}={stdio_host.host.host_id}", f"--filter=label={LABEL_INSTANCE}={instance}"]
    (found,) = docker("ps", "--quiet", "--no-trunc", *labels).split()
    return found


async def sampled(_context: Any, params: Any) -> CreateMessageResult:
    text = f"re: {params.messages[0].content.text}"
    return CreateMessageResult(role="assistant", content=TextContent(type="text", text=text), model="m")


async def elicited(_context: Any, _params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": "Ada"})


@asynccontextmanager
async def connected(stdio_host: StdioHost, instance: str, token: str) -> AsyncGenerator[Client]:
    """An agent that can be asked."""
    secret = {"token": token, "ca.crt": stdio_host.host.ca_file.read_text()}
    async with agent.http_client(secret) as http:
        transport = streamable_http_client(f"{stdio_host.url}/servers/{instance}/mcp", http_client=http)
        options: dict[str, Any] = {"sampling_callback": sampled, "elicitation_callback": elicited}
        async with Client(transport, mode="legacy", **options) as client:
            yield client


async def said(client: Client, tool: str, arguments: dict[str, Any] | None = None, **more: Any) -> str:
    """The text that a tool answers with."""
    result = await client.call_tool(tool, arguments or {}, **more)
    return "".join(block.text for block in result.content if isinstance(block, TextContent))


async def test_an_agent_uses_every_direction_of_it_in_sessions_that_share_its_container(
    stdio_host: StdioHost, everything: str
) -> None:
    (_, one), (_, two) = stdio_host.grant(everything), stdio_host.grant(everything)
    steps: list[float] = []

    async def note(progress: float, _total: float | None, _message: str | None) -> None:
        steps.append(progress)

    async with (
        asyncio.timeout(30),
        connected(stdio_host, everything, one) as first,
        connected(stdio_host, everything, two) as second,
    ):
        assert first.protocol_version == "2025-11-25"
        # Those of which the agent said that it can be asked are there too.
        asks = {"trigger-sampling-request", "trigger-elicitation-request"}
        assert asks <= {tool.name for tool in (await first.list_tools()).tools}
        assert "42" in await said(first, "get-sum", {"a": 40, "b": 2})
        long = {"duration": 0.3, "steps": 3}
        done, echoed = await asyncio.gather(
            said(first, "trigger-long-running-operation", long, progress_callback=note),
            said(second, "echo", {"message": "meanwhile"}),
        )
        assert "completed" in done and steps == [1.0, 2.0, 3.0] and "meanwhile" in echoed
        assert "re: Resource trigger-sampling-request context: why" in await said(
            first, "trigger-sampling-request", {"prompt": "why"}
        )
        assert "Ada" in await said(second, "trigger-elicitation-request")
    assert not stdio_host.sessions(everything), "a container was made for a session"


async def test_a_revoked_connection_is_out_at_once_and_nobody_else(stdio_host: StdioHost, everything: str) -> None:
    (uid, token), (_, other) = stdio_host.grant(everything), stdio_host.grant(everything)
    async with asyncio.timeout(60), connected(stdio_host, everything, other) as kept:
        async with connected(stdio_host, everything, token) as client:
            running = asyncio.create_task(said(client, "trigger-long-running-operation", {"duration": 600, "steps": 1}))
            assert "x" in await said(client, "echo", {"message": "x"})
            await asyncio.to_thread(stdio_host.revoke, uid)
            with pytest.raises(Exception, match=r".+"):
                await running
        assert "x" in await said(kept, "echo", {"message": "x"})


async def test_another_start_of_its_container_ends_its_sessions_and_agents_begin_anew(
    stdio_host: StdioHost, everything: str
) -> None:
    _, token = stdio_host.grant(everything)
    before = container(stdio_host, everything)
    async with asyncio.timeout(30), connected(stdio_host, everything, token) as client:
        assert "x" in await said(client, "echo", {"message": "x"})
        await asyncio.to_thread(docker, "kill", before)
        with pytest.raises(Exception, match=r".+"):
            await said(client, "echo", {"message": "x"})

    def back(seen: dict[str, Any]) -> bool:
        return seen["phase"] == "Ready" and seen["container"]["restarts"] > 0

    await asyncio.to_thread(until, "ready again", lambda: stdio_host.observed(everything), back, seconds=30)
    async with asyncio.timeout(30), connected(stdio_host, everything, token) as client:
        assert "x" in await said(client, "echo", {"message": "x"})


def test_a_server_that_listens_elsewhere_says_so_in_its_report(stdio_host: StdioHost, docker_engine: Engine) -> None:
    image = images.built(docker_engine, "everything")
    for changes, words in (({"port": 3002}, "Nothing listens"), ({"path": "/mcp"}, "HTTP 404")):
        name = str(uuid.uuid4())
        stdio_host.deploy(name, image=image, **(EVERYTHING | changes))
        try:

            def told(name: str = name) -> str:
                return str(stdio_host.observed(name)["probe"])

            until("a reason", told, lambda probe, words=words: words in probe)
        finally:
            where = {"uid": name, "namespace": "team-a", "name": "everything-sse"}
            stdio_host.api.delete(f"/v2/instances/{name}", params=where).raise_for_status()
