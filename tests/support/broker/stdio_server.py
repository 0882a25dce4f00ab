"""An ordinary MCP server, written with the SDK; started as a program, on stdio or, with a port, on SSE."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp_types import SamplingMessage, TextContent
from pydantic import BaseModel

server: MCPServer[Any] = MCPServer("on-stdio", version="3.2.1")
_said: list[str] = []


class Colour(BaseModel):
    """What a person is asked for."""

    name: str


@server.tool()
def echo(text: str) -> str:
    """The same again."""
    return text


@server.tool()
def remember(text: str) -> str:
    """Everything that was said to this process."""
    _said.append(text)
    return ",".join(_said)


@server.tool()
def pid() -> str:
    """Which process this is."""
    return str(os.getpid())


@server.tool()
def crash() -> str:
    """Ends the process without an answer."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@server.tool()
async def count(ctx: Context[Any], steps: int) -> str:
    """Reports how far it is."""
    for step in range(steps):
        await ctx.report_progress(step, steps)
    return f"counted {steps}"


@server.tool()
async def ask_model(ctx: Context[Any], question: str) -> str:
    """Has the client's model answer."""
    message = SamplingMessage(role="user", content=TextContent(type="text", text=question))
    # Deprecated in the newest revision; servers of the revisions that are spoken on stdio here go on using it.
    result = await ctx.session.create_message([message], max_tokens=9)  # pyright: ignore[reportDeprecated]
    return f"the model says {getattr(result.content, 'text', None)}"


@server.tool()
async def ask_person(ctx: Context[Any]) -> str:
    """Has the client's user answer."""
    result = await ctx.elicit("Which colour?", Colour)
    return f"the person says {result.data.name if result.action == 'accept' else result.action}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("sse", port=int(sys.argv[1]))
    else:
        server.run("stdio")
