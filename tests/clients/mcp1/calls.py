"""Uses several servers at once with the client of the `mcp` SDK 1.x: JSON on standard input, answers as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client


async def use(server: dict[str, Any]) -> dict[str, Any]:
    """One session: the server's tools, and what each call is answered."""
    async with (
        httpx.AsyncClient(headers={"Authorization": f"Bearer {server['token']}"}, timeout=120) as http,
        streamable_http_client(server["url"], http_client=http) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        found: dict[str, Any] = {"tools": [tool.name for tool in (await session.list_tools()).tools], "answers": []}
        for tool, arguments in server["calls"]:
            answer = await session.call_tool(tool, arguments)
            text = "\n".join(block.text for block in answer.content if block.type == "text")
            found["answers"].append({"text": text, "error": answer.isError})
        return found


async def main(given: dict[str, Any]) -> dict[str, Any]:
    """Every server, each in a session of its own."""
    servers: dict[str, dict[str, Any]] = given["servers"]
    return dict(zip(servers, await asyncio.gather(*map(use, servers.values())), strict=True))


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
