"""A FastMCP server with something for every client to try: `python server.py PORT [sse]`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fastmcp import Context, FastMCP

server = FastMCP("fastmcp", version="3.2.1")


@dataclass
class Sum:
    """What `add` answers."""

    total: int


@server.tool
def add(a: int, b: int) -> Sum:
    """Add two numbers."""
    return Sum(a + b)


@server.tool
def hidden() -> str:
    """No agent should see this."""
    return "hidden"


@server.tool
async def count(to: int, ctx: Context) -> str:
    """Count, and report every step."""
    for step in range(1, to + 1):
        await ctx.report_progress(step, to)
    return f"counted to {to}"


@server.tool
async def greet(ctx: Context) -> str:
    """Ask for a name, then greet."""
    answer = await ctx.elicit("What is your name?", str)
    return f"Hello, {answer.data}!" if answer.action == "accept" else "Hello, whoever you are!"


if __name__ == "__main__":
    transport, path = ("sse", "/sse") if sys.argv[2:] == ["sse"] else ("http", "/mcp")
    server.run(transport=transport, host="127.0.0.1", port=int(sys.argv[1]), path=path, show_banner=False)
