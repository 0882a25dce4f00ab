"""An ordinary client at a limit: its session goes on, and after the time it was told it gets what it asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import pytest
from mcp.client.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitRequestParams, ElicitResult, TextContent

from localstack.processes import Supervisor
from support.gateway.mcp_http import sdk_client
from support.gateway.others import fastmcp_server
from support.gateway.world import World
from toolbox_dtma.wire import GrantLimits

pytestmark = pytest.mark.e2e


async def refused(attempt: Awaitable[Any]) -> float:
    """Seconds after which a limited request may be made again."""
    with pytest.raises(MCPError) as limit:
        await attempt
    error = limit.value.error
    assert error.code == -32000 and error.data is not None, error
    return error.data["retryAfterMs"] / 1000


async def add(client: Client) -> None:
    """One call, that is answered."""
    answer = await client.call_tool("add", {"a": 20, "b": 22})
    assert answer.structured_content == {"total": 42}


async def test_a_client_at_its_rate_keeps_its_session_and_goes_on_after_the_time_it_was_told(
    gateway: World, supervisor: Supervisor
) -> None:
    port = fastmcp_server(supervisor)
    # Opening a session, with its GET stream, and listing take their part of the minute.
    connection = gateway.connect(gateway.instance(port), limits=GrantLimits(requests_per_minute=8))
    begun = time.monotonic()
    async with sdk_client(gateway, connection, "legacy") as client:
        calls: list[float] = []
        while True:
            try:
                await add(client)
            except MCPError:
                break
            calls.append(time.monotonic())
        assert 3 <= len(calls) <= 6
        wait = await refused(client.call_tool("add", {"a": 20, "b": 22}))
        assert 30 < wait <= 61
        # The told time is what is tested: a moment too early would still be refused, and then it is not.
        await asyncio.sleep(wait)
        await add(client)
        assert time.monotonic() - begun > 60
        sessions = [line for line in gateway.log_lines() if line.get("connection") == connection.uid]
        assert {line["reason"] for line in sessions} == {"rate-limit"}


async def test_a_client_with_a_call_too_many_keeps_its_session(gateway: World, supervisor: Supervisor) -> None:
    port = fastmcp_server(supervisor)
    connection = gateway.connect(gateway.instance(port), limits=GrantLimits(concurrent_calls=1))
    asked, told = asyncio.Event(), asyncio.Event()

    async def name(context: Any, params: ElicitRequestParams) -> ElicitResult:
        asked.set()
        await told.wait()
        return ElicitResult(action="accept", content={"value": "Ada"})

    async with sdk_client(gateway, connection, "legacy", elicitation_callback=name) as client:
        greeting = asyncio.create_task(client.call_tool("greet"))
        await asyncio.wait_for(asked.wait(), 15)
        wait = await refused(client.call_tool("add", {"a": 20, "b": 22}))
        # The answer to the server's question is no request, and passes.
        told.set()
        greeted = (await asyncio.wait_for(greeting, 15)).content[0]
        assert isinstance(greeted, TextContent) and greeted.text == "Hello, Ada!"
        await asyncio.sleep(wait)
        await add(client)
