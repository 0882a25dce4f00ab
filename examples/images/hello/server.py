"""A small MCP server to start your own from.

Run it on your machine with `python server.py` and point an MCP client at http://localhost:8000/mcp.
On a toolbox it runs without a published port: agents reach it through the gateway, which decides who may
call what, so there is nothing about tokens or permissions in here.
"""

from __future__ import annotations

import os
from typing import Annotated

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import BaseModel, Field

# Settings come from the environment: `env` of the MCPServer resource, values or references to Secrets.
GREETING = os.environ.get("GREETING", "Hello")
PORT = int(os.environ.get("PORT", "8000"))
NOTES = os.environ.get("NOTES", "")

server = MCPServer("hello", version="1.0.0", instructions="Greets people and counts words.")


# A tool is a function. Its docstring tells the agent when to use it; the types of its parameters become the
# schema that arguments are checked against, before your code runs.
@server.tool()
def greet(name: Annotated[str, Field(min_length=1, max_length=100, description="Who to greet")]) -> str:
    """Greet somebody by name."""
    return f"{GREETING}, {name}!"


# Return a model instead of a string, and agents get structured content with a schema besides the text.
class Counts(BaseModel):
    """What `word_count` answers."""

    words: int
    characters: int
    lines: int


@server.tool()
def word_count(text: Annotated[str, Field(max_length=100_000, description="The text to count")]) -> Counts:
    """Count the words, characters and lines of a text."""
    return Counts(words=len(text.split()), characters=len(text), lines=len(text.splitlines()))


# A ToolError is an answer that the agent sees and can act upon; the text of any other exception stays in the
# log. The quickstart hides this tool from every agent: `expose.tools.allow` does not name it.
@server.tool()
def fail(reason: Annotated[str, Field(max_length=200)] = "asked to") -> str:
    """Fail with the given reason: to see what a tool error looks like."""
    raise ToolError(reason)


# What has to outlive the container goes into a volume (examples/volumes): `NOTES` names a file in it. Without it there
# is nowhere to keep notes, and so no such tools.
if NOTES:

    @server.tool()
    def remember(note: Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\r\n]+$")]) -> str:
        """Keep a note of one line, for every later conversation."""
        with open(NOTES, "a", encoding="utf-8") as file:
            file.write(note + "\n")
        return "Noted."

    @server.tool()
    def recall() -> list[str]:
        """All notes that were kept, the oldest first."""
        if not os.path.exists(NOTES):
            return []
        with open(NOTES, encoding="utf-8") as file:
            return file.read().splitlines()


# Web pages must not reach this server by pointing a name of theirs at it (DNS rebinding), so only these Host
# headers are answered. The gateway says `localhost:<port>`, as does a client on your own machine.
LOCAL_ONLY = TransportSecuritySettings(allowed_hosts=["localhost:*", "127.0.0.1:*"])

if __name__ == "__main__":
    app = server.streamable_http_app(transport_security=LOCAL_ONLY)
    # All addresses, because the gateway comes from outside the container. A stop waits at most 2 seconds for
    # open streams, which agents keep open for as long as they are connected.
    uvicorn.run(app, host="0.0.0.0", port=PORT, timeout_graceful_shutdown=2)
