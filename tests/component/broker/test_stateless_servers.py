"""The SDK's server on stdio and the SDK's client of streamable HTTP, at the stateless revision."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp.client.client import Client
from mcp.client.subscriptions import ResourceUpdated, SubscriptionLost, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitResult, TextContent

from support.async_poll import until
from support.broker import stateless_server
from support.broker.client import sdk_client
from support.broker.programs import Process, Spawned
from support.broker.world import Broker
from support.gateway.mcp_http import MODERN
from toolbox_dtma.link.broker import Ended, OpenSession

pytestmark = pytest.mark.component

ARGV = [sys.executable, str(Path(stateless_server.__file__))]


def on_stdio(_request: OpenSession) -> Process:
    """A process of the server."""
    return Spawned(ARGV)


@pytest.fixture(scope="module")
def instance(broker: Broker) -> str:
    """An instance of the server; each test that counts processes has one of its own."""
    return broker.dtma.instance(on_stdio)


async def said(client: Client, tool: str, arguments: dict[str, Any] | None = None, **more: Any) -> str:
    """What a tool answers."""
    (content,) = (await client.call_tool(tool, arguments or {}, **more)).content
    assert isinstance(content, TextContent)
    return content.text


async def test_clients_of_one_connection_share_a_process_and_of_two_do_not(broker: Broker, instance: str) -> None:
    async with (
        sdk_client(broker.path, instance, "c-1") as one,
        sdk_client(broker.path, instance, "c-1") as two,
        sdk_client(broker.path, instance, "c-2") as three,
    ):
        assert {client.protocol_version for client in (one, two, three)} == {MODERN}
        info = one.server_info
        assert info is not None and (info.name, info.version) == ("on-stdio", "3.2.1")
        text = "é \u2028 \n\r\t \U0001f600"
        assert [await said(client, "echo", {"text": text}) for client in (one, two, three)] == [text] * 3
        pids = [await said(client, "pid") for client in (one, two, three)]
        assert pids[0] == pids[1] != pids[2]
    # Each client counts its ids from 1; a session has a process of its own beside.
    async with sdk_client(broker.path, instance, "c-1", mode="legacy") as old:
        assert await said(old, "pid") not in pids


async def test_progress_reaches_the_call_that_asked_for_it_also_when_clients_use_equal_tokens(
    broker: Broker, instance: str, tmp_path: Path
) -> None:
    seen: dict[int, list[float]] = {}
    gate = tmp_path / "gate"

    async def counted(steps: int) -> str:
        async def note(progress: float, _total: float | None, _message: str | None) -> None:
            seen.setdefault(steps, []).append(progress)

        async with sdk_client(broker.path, instance, "c-2") as client:
            return await said(client, "count", {"steps": steps, "gate": str(gate)}, progress_callback=note)

    sizes = range(3, 9)
    running = [asyncio.ensure_future(counted(steps)) for steps in sizes]
    gate.touch()
    assert await asyncio.gather(*running) == [f"counted {steps}" for steps in sizes]
    assert seen == {steps: [float(step) for step in range(steps)] for steps in sizes}


async def test_a_call_that_is_given_up_is_cancelled_in_the_process(
    broker: Broker, instance: str, tmp_path: Path
) -> None:
    markers = [tmp_path / "gone", tmp_path / "stays"]
    async with sdk_client(broker.path, instance, "c-2") as client:
        calls = [asyncio.ensure_future(client.call_tool("wait", {"marker": str(marker)})) for marker in markers]
        for marker in markers:
            await until("it runs", lambda marker=marker: marker.exists() and marker.read_text() == "running")
        calls[0].cancel()
        await until("it was cancelled", lambda: markers[0].read_text() == "cancelled")
        assert await said(client, "echo", {"text": "x"}) == "x" and markers[1].read_text() == "running"
        calls[1].cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_who_listens_is_told_of_changes_and_the_process_of_the_end(broker: Broker, instance: str) -> None:
    async with (
        sdk_client(broker.path, instance, "c-2") as one,
        sdk_client(broker.path, instance, "c-2") as two,
        one.listen(tools_list_changed=True) as tools,
        two.listen(resource_subscriptions=[stateless_server.RESOURCE]) as memo,
    ):
        for _ in range(2):
            assert await said(one, "change") == "changed"
            async with asyncio.timeout(10):
                assert await anext(tools) == ToolsListChanged()
                assert await anext(memo) == ResourceUpdated(stateless_server.RESOURCE)


async def test_a_subscription_is_lost_with_its_process(broker: Broker) -> None:
    instance = broker.dtma.instance(on_stdio)
    async with sdk_client(broker.path, instance) as client, client.listen(tools_list_changed=True) as tools:
        (name,) = broker.dtma.sessions(instance)
        broker.dtma.end(name, Ended.STOPPED, "The server was stopped")
        with pytest.raises(SubscriptionLost):
            async with asyncio.timeout(10):
                await anext(tools)
        assert await said(client, "echo", {"text": "again"}) == "again"
    assert len(broker.dtma.sessions(instance)) == 2


async def test_a_tool_that_needs_a_person_gets_the_answer_in_another_round(broker: Broker, instance: str) -> None:
    async def elicit(_context: Any, _params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": "green"})

    async with sdk_client(broker.path, instance, "c-2", elicitation_callback=elicit) as client:
        assert await said(client, "paint") == "painted green"
    async with sdk_client(broker.path, instance, "c-2") as client:
        with pytest.raises(MCPError) as refused:
            await client.call_tool("paint", {})
        assert refused.value.code == -32021


async def test_an_argument_is_repeated_in_a_header_by_clients_that_know_the_tool_and_by_those_that_learn_it(
    broker: Broker, instance: str
) -> None:
    async with sdk_client(broker.path, instance, "c-2") as client:
        # It has listed nothing: the refusal is what makes it.
        assert await said(client, "route", {"region": "日本"}) == "went to 日本"
        assert await said(client, "route", {"region": "eu"}) == "went to eu"


async def test_an_unknown_method_and_an_unknown_tool_are_the_servers_own_errors(broker: Broker, instance: str) -> None:
    async with sdk_client(broker.path, instance, "c-2") as client:
        with pytest.raises(MCPError) as refused:
            await client.complete({"type": "ref/prompt", "name": "x"}, {"name": "a", "value": "b"})  # pyright: ignore[reportArgumentType]
        assert refused.value.code == -32601
