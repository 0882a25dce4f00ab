"""Published servers on the pipes of a container, held as a toolbox holds every container."""

from __future__ import annotations

import asyncio
import runpy
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import cast

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp_types import CallToolResult, TextContent

from localstack.recipes import CONTEXTS

CHECK = CONTEXTS / "check.py"
FLAGS = cast("tuple[str, ...]", runpy.run_path(str(CHECK))["FLAGS"])
"""What `docker run` is told; that a toolbox does the same is a test of its own."""

_SECONDS = 90.0


def argv(image: str, *arguments: str, flags: Sequence[str] = ()) -> list[str]:
    """The command line of `docker` for a server on pipes."""
    return ["run", "--interactive", "--rm", "--log-driver=none", *FLAGS, *flags, image, *arguments]


@asynccontextmanager
async def conversation(
    image: str, *arguments: str, flags: Sequence[str] = (), mode: str = "legacy"
) -> AsyncGenerator[Client]:
    """A client of the SDK that has shaken hands; `mode` as the SDK names them. The container ends with it."""
    parameters = StdioServerParameters(command="docker", args=argv(image, *arguments, flags=flags))
    async with asyncio.timeout(_SECONDS):
        # The stream of this moment: the one at import is another test's.
        transport = stdio_client(parameters, errlog=sys.stderr)
        async with Client(transport, mode=mode, read_timeout_seconds=_SECONDS) as client:
            yield client


def text(result: CallToolResult) -> str:
    """What a call answered, as text."""
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


async def tool_names(client: Client) -> set[str]:
    """The tools that a server lists."""
    return {tool.name for tool in (await client.list_tools()).tools}
