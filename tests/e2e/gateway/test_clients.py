"""Clients that agents are built with, used as their documents say, against a FastMCP server behind the gateway."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mcp import types
from mcp.shared.exceptions import MCPError

from localstack.processes import Supervisor
from support.gateway.mcp_http import sdk_client
from support.gateway.others import FASTMCP_TOOLS, conformance_server, fastmcp_server, findings
from support.gateway.sse_client import sse_url
from support.gateway.world import Connection, World, restricted

pytestmark = pytest.mark.e2e

SEEN = ["add", "count", "greet"]
REFUSED = "may not call that tool"
GREETING = "Hello, Ada!"


@pytest.fixture(scope="module")
def connection(gateway: World, supervisor: Supervisor) -> Connection:
    """A connection that shows all tools but one."""
    instance = gateway.instance(fastmcp_server(supervisor), surface=FASTMCP_TOOLS)
    return gateway.connect(instance, expose=restricted("*", deny=("hid*",)))


def _check(found: dict[str, Any]) -> None:
    assert found["tools"] == SEEN
    assert found["sum"] == {"total": 5}
    assert found["counted"] == "counted to 3"
    assert found["progress"] == [[1, 3], [2, 3], [3, 3]]
    assert REFUSED in found["hidden"]
    # Some show the status, the others the message that came with it.
    assert any(words in found["wrong_token"] for words in ("401", "A valid bearer token is needed"))


@pytest.mark.parametrize(
    "client",
    ["mcp1/client.py", "mcp1/langchain_client.py", "node/client.mjs"],
    ids=["mcp SDK 1.x", "langchain-mcp-adapters", "TypeScript SDK"],
)
def test_a_client_of_the_handshake_era_works(
    gateway: World, connection: Connection, tmp_path: Path, client: str
) -> None:
    found = findings(gateway, client, connection, tmp_path)
    _check(found)
    assert found["greeting"] == GREETING, "asked by the server in the middle of a call"


@pytest.mark.parametrize("client", ["mcp1/client.py", "node/client.mjs"], ids=["mcp SDK 1.x", "TypeScript SDK"])
def test_a_client_of_http_sse_works(gateway: World, connection: Connection, tmp_path: Path, client: str) -> None:
    found = findings(gateway, client, replace(connection, url=sse_url(connection)), tmp_path, transport="sse")
    _check(found)
    assert found["greeting"] == GREETING


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_the_fastmcp_client_works_in_both_eras(
    gateway: World, connection: Connection, tmp_path: Path, mode: str
) -> None:
    found = findings(gateway, "fastmcp/client.py", connection, tmp_path, mode=mode)
    _check(found)
    if mode == "legacy":
        assert found["greeting"] == GREETING


async def _found_by_sdk(gateway: World, connection: Connection, mode: str) -> dict[str, Any]:
    found: dict[str, Any] = {"progress": []}

    async def progressed(progress: float, total: float | None, message: str | None) -> None:
        found["progress"].append([progress, total])

    async def asked(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"value": "Ada"})

    async with sdk_client(gateway, connection, mode, elicitation_callback=asked) as client:
        found["version"] = client.protocol_version
        found["tools"] = sorted(tool.name for tool in (await client.list_tools()).tools)
        found["sum"] = (await client.call_tool("add", {"a": 2, "b": 3})).structured_content
        counted = await client.call_tool("count", {"to": 3}, progress_callback=progressed)
        found["counted"] = _text(counted)
        if mode == "legacy":
            found["greeting"] = _text(await client.call_tool("greet"))
        with pytest.raises(MCPError) as refused:
            await client.call_tool("hidden")
        found["hidden"] = str(refused.value)
    return found


def _text(result: types.CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, types.TextContent)
    return block.text


@pytest.mark.parametrize(("mode", "version"), [("legacy", "2025-11-25"), ("auto", "2026-07-28")])
async def test_the_sdk_of_today_works_in_both_eras(
    gateway: World, connection: Connection, mode: str, version: str
) -> None:
    found = await _found_by_sdk(gateway, connection, mode)
    assert found["version"] == version
    with pytest.raises(BaseException) as refused:
        await _found_by_sdk(gateway, Connection("", "", connection.url, f"{connection.token}x"), mode)
    _check({**found, "wrong_token": repr(refused.value)})
    if mode == "legacy":
        assert found["greeting"] == GREETING


async def test_a_server_without_handshake_asks_in_rounds_and_in_the_order_of_the_call(
    gateway: World, supervisor: Supervisor
) -> None:
    instance = gateway.instance(conformance_server(supervisor, "conformance-rounds"))
    connection = gateway.connect(instance)
    asked: list[str] = []

    async def answer(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"name": "Ada", "color": "blue"})

    async with sdk_client(gateway, connection, elicitation_callback=answer) as client:
        assert client.protocol_version == "2026-07-28"
        assert _text(await client.call_tool("test_input_required_result_multi_round")) == "round 2 of Ada: blue"
    assert asked == ["Step 1: What is your name?", "Step 2: What is your favorite color?"]
