"""A server of the SSE transport, written with the SDK 1.x: `python sse_server.py PORT`."""

from __future__ import annotations

import sys

from mcp.server.fastmcp import Context, FastMCP
from pydantic import BaseModel

server = FastMCP("mcp1", host="127.0.0.1", port=int(sys.argv[1]))


class Name(BaseModel):
    """What a person is asked for."""

    value: str


class Sum(BaseModel):
    """What `add` answers."""

    total: int


@server.tool()
def add(a: int, b: int) -> Sum:
    """Add two numbers."""
    return Sum(total=a + b)


@server.tool()
def hidden() -> str:
    """No agent should see this."""
    return "hidden"


@server.tool()
async def count(to: int, ctx: Context) -> str:
    """Count, and report every step."""
    for step in range(1, to + 1):
        await ctx.report_progress(step, to)
    return f"counted to {to}"


@server.tool()
async def greet(ctx: Context) -> str:
    """Ask for a name, then greet."""
    answer = await ctx.elicit("What is your name?", Name)
    return f"Hello, {answer.data.value}!" if answer.action == "accept" else "Hello, whoever you are!"


if __name__ == "__main__":
    server.run(transport="sse")
