"""A server on stdio, written with the SDK, for requests that share its process; started as a program."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.resolve import Elicit, Resolve
from pydantic import BaseModel, Field

server: MCPServer[Any] = MCPServer("on-stdio", version="3.2.1")
RESOURCE = "memo://all"


class Colour(BaseModel):
    """What a person is asked for."""

    name: str


def _passed(gate: Path) -> None:
    while not gate.exists():
        time.sleep(0.01)


def _note(marker: str, text: str) -> None:
    Path(marker).write_text(text)


def which() -> Elicit[Colour]:
    """Asks a person."""
    return Elicit("Which colour?", Colour)


@server.resource(RESOURCE)
def memo() -> str:
    """What can be watched."""
    return "memo"


@server.tool()
def echo(text: str) -> str:
    """The same again."""
    return text


@server.tool()
def pid() -> str:
    """Which process this is."""
    return str(os.getpid())


@server.tool()
async def count(ctx: Context[Any], steps: int, gate: str) -> str:
    """Reports how far it is, once a file is there."""
    await asyncio.to_thread(_passed, Path(gate))
    for step in range(steps):
        await ctx.report_progress(step, steps)
        await asyncio.sleep(0)
    return f"counted {steps}"


@server.tool()
async def wait(marker: str) -> str:
    """Goes on until it is cancelled, and says in a file how far it is."""
    _note(marker, "running")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        _note(marker, "cancelled")
        raise
    return "never"


@server.tool()
async def change(ctx: Context[Any]) -> str:
    """Tells those who listen that something is new."""
    await ctx.notify_tools_changed()
    await ctx.notify_resource_updated(RESOURCE)
    return "changed"


@server.tool()
async def paint(colour: Annotated[Colour, Resolve(which)]) -> str:
    """Needs to know a colour."""
    return f"painted {colour.name}"


@server.tool()
def route(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> str:
    """Its clients repeat an argument in a header."""
    return f"went to {region}"


if __name__ == "__main__":
    server.run("stdio")
