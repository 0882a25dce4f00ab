"""What LangChain's MCP adapters see: JSON on standard input, findings as JSON on standard output."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_mcp_adapters.callbacks import CallbackContext, Callbacks
from langchain_mcp_adapters.client import MultiServerMCPClient
from mcp import McpError, types


async def main(given: dict[str, Any]) -> dict[str, Any]:
    """Everything a client can try."""
    found: dict[str, Any] = {"progress": []}

    async def progressed(progress: float, total: float | None, _message: str | None, _context: CallbackContext) -> None:
        found["progress"].append([progress, total])

    async def asked(_mcp: Any, _params: types.ElicitRequestParams, _context: CallbackContext) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"value": "Ada"})

    def client(token: str) -> MultiServerMCPClient:
        server = {"transport": "streamable_http", "url": given["url"], "headers": {"Authorization": f"Bearer {token}"}}
        return MultiServerMCPClient(
            {"toolbox": server}, callbacks=Callbacks(on_progress=progressed, on_elicitation=asked)
        )

    async def call(name: str, arguments: dict[str, Any]) -> Any:
        return await tools[name].ainvoke({"type": "tool_call", "id": "1", "name": name, "args": arguments})

    agent = client(given["token"])
    tools = {tool.name: tool for tool in await agent.get_tools()}
    found["tools"] = sorted(tools)
    found["sum"] = (await call("add", {"a": 2, "b": 3})).artifact["structured_content"]
    found["counted"] = (await call("count", {"to": 3})).content[0]["text"]
    found["greeting"] = (await call("greet", {})).content[0]["text"]
    async with agent.session("toolbox") as session:
        try:
            await session.call_tool("hidden")
        except McpError as refused:
            found["hidden"] = str(refused)
    try:
        await client(given["wrong_token"]).get_tools()
        found["wrong_token"] = "accepted"
    except BaseExceptionGroup as refused:  # the SDK's task group wraps whatever refused it
        found["wrong_token"] = repr(refused.exceptions)
    return found


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
