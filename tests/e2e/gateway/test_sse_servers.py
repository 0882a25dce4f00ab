"""Servers of the SSE transport as their makers ship them, reached by streamable HTTP through gateway and broker."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitRequestParams, ElicitResult, TextContent

from localstack.processes import Supervisor
from support.broker.world import Broker, running_broker
from support.gateway.mcp_http import sdk_client
from support.gateway.others import fastmcp_server, mcp1_sse_server
from support.gateway.world import World, restricted
from toolbox_dtma.link.broker import Upstream

pytestmark = pytest.mark.e2e

TOOLS = {"add", "count", "greet", "hidden"}


@pytest.fixture(scope="module")
def broker() -> Generator[Broker]:
    """A broker of the gateway's user."""
    with running_broker(unprivileged=True) as broker:
        yield broker


@pytest.mark.parametrize("made_with", ["mcp SDK 1.x", "FastMCP"])
async def test_a_server_on_sse_is_probed_listed_called_and_asks_within_policy(
    gateway: World, supervisor: Supervisor, broker: Broker, made_with: str
) -> None:
    port = mcp1_sse_server(supervisor) if made_with == "mcp SDK 1.x" else fastmcp_server(supervisor, "sse")
    where = Upstream(address="127.0.0.1", port=port, path="/sse")
    instance = broker.dtma.instance(lambda _request: where)
    path = f"/instances/{instance}/mcp"
    probed = gateway.dtma.probe(0, path, address="", bridge=str(broker.path), ticket="t-1")
    assert probed.report.ok and set(probed.surface.tools) == TOOLS, probed.report.message
    gateway.bridged(instance, broker.path, surface=probed.surface)
    connection = gateway.connect(instance, expose=restricted("*", deny=("hid*",)))
    steps: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async def asked(context: object, params: ElicitRequestParams) -> ElicitResult:
        return ElicitResult(action="accept", content={"value": "Ada"})

    for mode in ("auto", "legacy"):
        async with sdk_client(gateway, connection, mode, elicitation_callback=asked) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS - {"hidden"}
            assert (await client.call_tool("add", {"a": 2, "b": 3})).structured_content == {"total": 5}
            steps.clear()
            counted = (await client.call_tool("count", {"to": 3}, progress_callback=note)).content[0]
            assert isinstance(counted, TextContent) and (counted.text, steps) == ("counted to 3", [1, 2, 3])
            greeted = (await client.call_tool("greet")).content[0]
            assert isinstance(greeted, TextContent) and greeted.text == "Hello, Ada!"
            with pytest.raises(MCPError) as refused:
                await client.call_tool("hidden")
            assert refused.value.error.code == -32602
