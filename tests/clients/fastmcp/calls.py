"""Uses several servers at once with FastMCP's client: JSON on standard input, answers as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport


async def use(server: dict[str, Any]) -> dict[str, Any]:
    """One session: the server's tools, and what each call is answered."""
    async with Client(StreamableHttpTransport(server["url"], auth=server["token"])) as session:
        found: dict[str, Any] = {"tools": [tool.name for tool in await session.list_tools()], "answers": []}
        for tool, arguments in server["calls"]:
            answer = await session.call_tool(tool, arguments, raise_on_error=False)
            text = "\n".join(block.text for block in answer.content if block.type == "text")
            found["answers"].append({"text": text, "error": answer.is_error})
        return found


async def main(given: dict[str, Any]) -> dict[str, Any]:
    """Every server, each in a session of its own."""
    servers: dict[str, dict[str, Any]] = given["servers"]
    return dict(zip(servers, await asyncio.gather(*map(use, servers.values())), strict=True))


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
