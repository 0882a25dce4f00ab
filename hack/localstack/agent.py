"""An agent as anybody would write it: the `mcp` SDK's client and a connection's Secret, nothing else."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import TextContent

from localstack.progress import SetupError

DEADLINE = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    tools: tuple[str, ...]
    text: str
    seconds: float
    """From sending the call to its answer, without connecting."""


def http_client(secret: Mapping[str, str]) -> httpx2.AsyncClient:
    """An HTTP client that sends the Secret's token and trusts the Secret's authority."""
    verify: ssl.SSLContext | bool = ssl.create_default_context(cadata=secret["ca.crt"]) if "ca.crt" in secret else True
    headers = {"Authorization": f"Bearer {secret['token']}"}
    return httpx2.AsyncClient(headers=headers, verify=verify, timeout=DEADLINE, trust_env=False)


async def call(secret: Mapping[str, str], tool: str, arguments: dict[str, Any]) -> Answer:
    """Connects, lists the tools and calls one."""
    async with asyncio.timeout(DEADLINE), http_client(secret) as http:
        transport = streamable_http_client(secret["url"], http_client=http)
        async with Client(transport, mode="legacy") as client:
            tools = tuple(tool.name for tool in (await client.list_tools()).tools)
            begin = time.perf_counter()
            result = await client.call_tool(tool, arguments)
            seconds = time.perf_counter() - begin
    text = "\n".join(block.text for block in result.content if isinstance(block, TextContent))
    if result.is_error:
        raise SetupError(f"the tool {tool} answered with an error: {text}")
    return Answer(tools, text, seconds)


EXPECTED = (OSError, TimeoutError, httpx2.HTTPError, MCPError)
"""What a conversation over a network may end with; anything else is a defect and stays as it is."""


@contextmanager
def readable_errors() -> Generator[None]:
    """Turns what a failed conversation raises (often groups of exceptions) into one sentence."""
    # Not `except*`: what is raised there arrives wrapped in a group.
    try:
        yield
    except EXPECTED as error:
        raise SetupError(f"the agent's call failed: {type(error).__name__}: {error}") from error
    except ExceptionGroup as group:
        if group.split(EXPECTED)[1] is not None:
            raise
        reasons = "; ".join(f"{type(error).__name__}: {error}" for error in _leaves(group))
        raise SetupError(f"the agent's call failed: {reasons}") from group


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    pending: list[Exception] = [group]
    while pending:
        match pending.pop(0):
            case ExceptionGroup(exceptions=inner):
                pending[:0] = cast("tuple[Exception, ...]", inner)
            case error:
                yield error
