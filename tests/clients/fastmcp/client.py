"""What FastMCP's client sees: arguments come as JSON on standard input, findings go as JSON to standard output."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.exceptions import ToolError
from mcp.shared.exceptions import MCPError


async def main(given: dict[str, Any]) -> dict[str, Any]:
    """Everything a client can try."""
    found: dict[str, Any] = {"progress": []}

    async def progressed(progress: float, total: float | None, _message: str | None) -> None:
        found["progress"].append([progress, total])

    async def asked(_message: str, response_type: type[Any], _params: Any, _context: Any) -> Any:
        return response_type(value="Ada")

    def client(token: str) -> Client[StreamableHttpTransport]:
        transport = StreamableHttpTransport(given["url"], auth=token)
        return Client(transport, elicitation_handler=asked, progress_handler=progressed, mode=given["mode"])

    async with client(given["token"]) as session:
        found["tools"] = sorted(tool.name for tool in await session.list_tools())
        found["sum"] = (await session.call_tool("add", {"a": 2, "b": 3})).structured_content
        found["counted"] = (await session.call_tool("count", {"to": 3})).data
        if given["mode"] == "legacy":
            found["greeting"] = (await session.call_tool("greet")).data
        try:
            await session.call_tool("hidden")
        except (ToolError, MCPError) as refused:
            found["hidden"] = str(refused)
    try:
        async with client(given["wrong_token"]):
            found["wrong_token"] = "accepted"
    except Exception as refused:
        found["wrong_token"] = repr(refused)
    return found


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
