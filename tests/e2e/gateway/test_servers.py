"""Servers as their makers ship them, behind the gateway: probed, listed, called, and hidden where policy says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError

from localstack.processes import Supervisor
from support.gateway.mcp_http import sdk_client
from support.gateway.others import everything_server, fastmcp_server, hello_server
from support.gateway.world import World, restricted

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Shipped:
    """A server and one tool of it that gives structured content."""

    start: Callable[[Supervisor], int]
    tool: str
    arguments: dict[str, Any]
    answers: Callable[[Any], bool]
    denied: str
    stateless: bool
    """Whether it knows the revision without handshake."""


SERVERS = {
    "server-everything": Shipped(
        everything_server,
        "get-structured-content",
        {"location": "New York"},
        lambda found: "temperature" in found,
        "get-env",
        stateless=False,
    ),
    "FastMCP": Shipped(
        fastmcp_server, "add", {"a": 20, "b": 22}, lambda found: found == {"total": 42}, "hidden", stateless=True
    ),
    "our example": Shipped(
        hello_server, "word_count", {"text": "one two"}, lambda found: found["words"] == 2, "fail", stateless=True
    ),
}


@pytest.mark.parametrize("name", SERVERS)
async def test_a_shipped_server_is_probed_listed_and_called_in_every_era_it_has(
    gateway: World, supervisor: Supervisor, name: str
) -> None:
    shipped = SERVERS[name]
    port = shipped.start(supervisor)
    probed = gateway.dtma.probe(port, "/mcp")
    assert probed.report.ok, probed
    surface = probed.surface
    assert {shipped.tool, shipped.denied} <= set(surface.tools)
    connection = gateway.connect(
        gateway.instance(port, surface=surface), expose=restricted("*", deny=(shipped.denied,))
    )
    for mode in ("legacy", "auto"):
        async with sdk_client(gateway, connection, mode) as client:
            assert (client.protocol_version == "2026-07-28") is (shipped.stateless and mode == "auto")
            listed = {tool.name for tool in (await client.list_tools()).tools}
            assert listed == set(surface.tools) - {shipped.denied}
            answer = await client.call_tool(shipped.tool, shipped.arguments)
            assert not answer.is_error
            assert shipped.answers(answer.structured_content), answer.structured_content
            with pytest.raises(MCPError) as refused:
                await client.call_tool(shipped.denied)
            assert refused.value.error.code == -32602
