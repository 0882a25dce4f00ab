"""The stateless revision on stdio servers, through the gateway: policy, revocation and hang-ups hold there too."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitResult, TextContent

from support.broker import stateless_server
from support.broker.programs import Script, Scripted, Spawned
from support.broker.stateless import LISTEN, answers, asking, stateless_process
from support.broker.world import Broker, running_broker
from support.gateway.mcp_http import MODERN, sdk_client
from support.gateway.world import Connection, World, restricted
from toolbox_dtma.link.messages import Surface

pytestmark = pytest.mark.component

TOOLS = ("echo", "pid", "count", "wait", "change", "paint", "route")


@pytest.fixture(scope="module")
def broker() -> Generator[Broker]:
    """A broker of the gateway's user."""
    with running_broker(unprivileged=True) as broker:
        yield broker


@pytest.fixture
async def script() -> AsyncGenerator[Script]:
    """A program that the test speaks for."""
    script = Script()
    yield script
    await script.close()


async def post(http: httpx.AsyncClient, connection: Connection, body: dict[str, Any]) -> httpx.Response:
    """A request as an agent sends it."""
    routing = {"MCP-Protocol-Version": MODERN, "Mcp-Method": body["method"]}
    return await http.post(connection.url, json=body, headers={**connection.headers, **routing})


async def serving(http: httpx.AsyncClient, connection: Connection, script: Script, *, known: bool = False) -> Scripted:
    """A process that has answered a first request of this connection. `known`: it need not be asked before."""
    asked = asyncio.ensure_future(post(http, connection, asking("x/y")))
    process = await (script.process() if known else stateless_process(script))
    await answers(process, {})
    assert (await asked).status_code == 200
    return process


async def test_an_agent_uses_a_server_on_stdio_as_any_other_within_its_policy(gateway: World, broker: Broker) -> None:
    argv = [sys.executable, str(Path(stateless_server.__file__))]
    instance = broker.dtma.instance(lambda _request: Spawned(argv))
    instance = gateway.bridged(instance, broker.path, surface=Surface(tools=TOOLS))
    connection = gateway.connect(instance, expose=restricted("echo", "paint", "route", "change"))

    async def elicit(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": "green"})

    async with sdk_client(gateway, connection, elicitation_callback=elicit) as client:
        assert client.protocol_version == MODERN
        tools = [tool.name for tool in (await client.list_tools()).tools]
        assert tools == ["echo", "change", "paint", "route"]
        for tool, arguments, said in (
            ("echo", {"text": "é"}, "é"),
            ("paint", {}, "painted green"),
            ("route", {"region": "日本"}, "went to 日本"),
        ):
            (content,) = (await client.call_tool(tool, arguments)).content
            assert isinstance(content, TextContent) and content.text == said
        with pytest.raises(MCPError) as refused:
            await client.call_tool("pid", {})
        assert refused.value.code == -32602
        async with client.listen(tools_list_changed=True) as changes:
            await client.call_tool("change", {})
            async with asyncio.timeout(10):
                await anext(changes)
    assert len(broker.dtma.sessions(instance)) == 1


async def test_a_hang_up_of_an_agent_cancels_its_call(
    gateway: World, broker: Broker, script: Script, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.bridged(broker.dtma.instance(script), broker.path))
    process = await serving(http, connection, script)
    for body in (asking("x/y", 1), asking(LISTEN, 1, notifications={})):
        leaves = asyncio.ensure_future(post(http, connection, body))
        heard = await process.heard()
        leaves.cancel()
        told = await process.heard()
        assert (told["method"], told["params"]["requestId"]) == ("notifications/cancelled", heard["id"])


async def test_a_revoked_connection_loses_its_calls_and_another_keeps_its_own(
    gateway: World, broker: Broker, script: Script, http: httpx.AsyncClient
) -> None:
    instance = gateway.bridged(broker.dtma.instance(script), broker.path)
    mine, yours = gateway.connect(instance), gateway.connect(instance)
    processes = [await serving(http, mine, script), await serving(http, yours, script, known=True)]
    running = [asyncio.ensure_future(post(http, connection, asking("x/y", 1))) for connection in (mine, yours)]
    heard = [await process.heard() for process in processes]
    await asyncio.to_thread(gateway.revoke, mine)
    assert (await running[0]).status_code == 401
    assert (await post(http, mine, asking("x/y"))).status_code == 401
    processes[1].say({"jsonrpc": "2.0", "id": heard[1]["id"], "result": {"of": yours.uid}})
    assert (await running[1]).json()["result"] == {"of": yours.uid}
