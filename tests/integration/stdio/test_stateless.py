"""A published server on stdio at the stateless revision, through everything that is real."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager

import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent

from localstack import agent, images
from localstack.docker import Engine
from support.hosts.stdio_host import SESSIONS_TOLD, StdioHost
from support.poll import until

pytestmark = pytest.mark.integration

MODERN = "2026-07-28"


@pytest.fixture(scope="module")
def clock(stdio_host: StdioHost, docker_engine: Engine) -> Generator[str]:
    """A ready server that tells the time."""
    name = str(uuid.uuid4())
    limits = {"memoryBytes": 256 * 1024 * 1024, "cpuMillis": 1000, "pids": 64}
    stdio_host.deploy(name, image=images.built(docker_engine, "time"), command=[], limits=limits)
    stdio_host.await_phase(name, "Ready")
    yield name
    stdio_host.remove(name)
    assert not stdio_host.sessions(name)


@asynccontextmanager
async def connected(host: StdioHost, instance: str, token: str, mode: str = "auto") -> AsyncGenerator[Client]:
    """An agent, in the era that it finds."""
    secret = {"token": token, "ca.crt": host.host.ca_file.read_text()}
    async with agent.http_client(secret) as http:
        transport = streamable_http_client(f"{host.url}/servers/{instance}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


async def told(client: Client) -> str:
    """What time it is in Tokyo."""
    (content,) = (await client.call_tool("get_current_time", {"timezone": "Asia/Tokyo"})).content
    assert isinstance(content, TextContent)
    return content.text


async def test_all_requests_of_an_agent_share_a_container_which_ends_with_its_grant(
    stdio_host: StdioHost, clock: str
) -> None:
    assert stdio_host.observed(clock)["probe"]["protocolVersion"] == MODERN
    until("no container of the probe", lambda: not stdio_host.sessions(clock))
    (uid, token), (_, other) = stdio_host.grant(clock), stdio_host.grant(clock)
    async with connected(stdio_host, clock, token, MODERN) as one:
        # It has started, and is asked what it speaks: agents that find out for themselves wait 10 s for that.
        assert "+09:00" in await told(one)
        async with connected(stdio_host, clock, token) as two:
            assert one.protocol_version == two.protocol_version == MODERN
            answers = await asyncio.gather(*(told(client) for client in (one, two) * 4))
            assert all("+09:00" in answer for answer in answers)
        until("one open", lambda: stdio_host.observed(clock)["sessions"]["open"] == 1, seconds=SESSIONS_TOLD)
        async with (
            connected(stdio_host, clock, other, MODERN) as another,
            connected(stdio_host, clock, token, "legacy") as old,
        ):
            assert "+09:00" in await told(another) and "+09:00" in await told(old)
            assert old.protocol_version == "2025-11-25"
            await asyncio.to_thread(
                until, "three open", lambda: stdio_host.observed(clock)["sessions"]["open"] == 3, seconds=SESSIONS_TOLD
            )
            await asyncio.to_thread(stdio_host.revoke, uid)
            await asyncio.to_thread(
                until, "one open", lambda: stdio_host.observed(clock)["sessions"]["open"] == 1, seconds=SESSIONS_TOLD
            )
            assert "+09:00" in await told(another)
