"""What the client of the `mcp` SDK 1.x sees: JSON on standard input, findings as JSON on standard output."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from mcp import ClientSession, McpError, types
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client


async def main(given: dict[str, Any]) -> dict[str, Any]:
    """Everything a client can try."""
    found: dict[str, Any] = {"progress": []}

    async def progressed(progress: float, total: float | None, _message: str | None) -> None:
        found["progress"].append([progress, total])

    async def asked(_context: Any, _params: types.ElicitRequestParams) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"value": "Ada"})

    @asynccontextmanager
    async def streams(token: str) -> AsyncGenerator[tuple[Any, Any]]:
        headers = {"Authorization": f"Bearer {token}"}
        if given.get("transport") == "sse":
            async with sse_client(given["url"], headers=headers) as (read, write):
                yield read, write
        else:
            async with (
                httpx.AsyncClient(headers=headers, timeout=120) as http,
                streamable_http_client(given["url"], http_client=http) as (read, write, _),
            ):
                yield read, write

    @asynccontextmanager
    async def connected(token: str) -> AsyncGenerator[ClientSession]:
        async with (
            streams(token) as (read, write),
            ClientSession(read, write, elicitation_callback=asked) as session,
        ):
            await session.initialize()
            yield session

    async with connected(given["token"]) as session:
        found["tools"] = sorted(tool.name for tool in (await session.list_tools()).tools)
        found["sum"] = (await session.call_tool("add", {"a": 2, "b": 3})).structuredContent
        counted = await session.call_tool("count", {"to": 3}, progress_callback=progressed)
        found["counted"] = counted.content[0].text
        found["greeting"] = (await session.call_tool("greet")).content[0].text
        try:
            await session.call_tool("hidden")
        except McpError as refused:
            found["hidden"] = str(refused)
    try:
        async with connected(given["wrong_token"]):
            found["wrong_token"] = "accepted"
    except BaseExceptionGroup as refused:  # the SDK's task group wraps whatever refused it
        found["wrong_token"] = repr(refused.exceptions)
    return found


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
