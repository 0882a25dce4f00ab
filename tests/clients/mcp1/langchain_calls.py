"""Uses several servers at once with LangChain's MCP adapters: JSON on standard input, answers as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools


async def use(agent: MultiServerMCPClient, name: str, calls: list[Any]) -> dict[str, Any]:
    """One session: the server's tools, and what each call is answered."""
    async with agent.session(name) as session:
        tools = {tool.name: tool for tool in await load_mcp_tools(session)}
        found: dict[str, Any] = {"tools": list(tools), "answers": []}
        for tool, arguments in calls:
            asked = {"type": "tool_call", "id": "1", "name": tool, "args": arguments}
            answer = await tools[tool].ainvoke(asked)
            text = "\n".join(block["text"] for block in answer.content if block["type"] == "text")
            found["answers"].append({"text": text, "error": answer.status == "error"})
        return found


async def main(given: dict[str, Any]) -> dict[str, Any]:
    """Every server, each in a session of its own."""
    servers: dict[str, dict[str, Any]] = given["servers"]
    agent = MultiServerMCPClient(
        {
            name: {
                "transport": "streamable_http",
                "url": server["url"],
                "headers": {"Authorization": f"Bearer {server['token']}"},
            }
            for name, server in servers.items()
        }
    )
    found = await asyncio.gather(*(use(agent, name, server["calls"]) for name, server in servers.items()))
    return dict(zip(servers, found, strict=True))


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
