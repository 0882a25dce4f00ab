"""The readiness probe: one bounded MCP conversation with a server that may be hostile (design §3, §5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar, cast

import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    CLIENT_INFO_META_KEY,
    PROTOCOL_VERSION_META_KEY,
    Implementation,
    JSONRPCError,
    ServerCapabilities,
    Tool,
)
from mcp_types.version import LATEST_MODERN_VERSION, MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from toolbox_dtma import __version__
from toolbox_dtma.gateway.definitions import opaque, surface_hash
from toolbox_dtma.gateway.headers import PROBE
from toolbox_dtma.gateway.parsing import SERVER_ERROR
from toolbox_dtma.gateway.probe_bounds import CLOSING_SECONDS, MAX_RESPONSE_BYTES, BoundedTransport, Budget
from toolbox_dtma.gateway.shown_tools import ShownTool, ShownTools
from toolbox_dtma.link.messages import ProbeRequest, ProbeResult, Surface
from toolbox_dtma.wire import ProbeReport, ServerInfo, ToolSummary

MAX_PAGES = 100
MAX_TOOLS = 1000
"""Also for prompts, resources and resource templates."""
MAX_SECONDS = 10.0
MAX_NAME = 512
OTHER_ERA_SECONDS = 2.0
"""What a server that speaks the stateless revision may take to list its tools after a handshake as well."""
BRIDGED_OTHER_ERA_SECONDS = 5.0
"""The same behind the session broker, where the handshake takes a process of its own: once that is likely to run."""
MAX_START_SECONDS = 60.0
"""What processes may take to start, beyond the conversation."""
_SHOWN_TOOLS = 256
_SHOWN_CHARACTERS = 256
_INFO = Implementation(name="magic-toolbox-probe", version=__version__)


Item = TypeVar("Item")


class ProbeFailed(Exception):
    """The conversation did not come about; the message says why."""


async def probe(request: ProbeRequest) -> ProbeResult:
    """Negotiate, read every page of tools/list, close the session. Never raises for what a server does."""
    loop = asyncio.get_running_loop()
    seconds, start = min(request.deadline, MAX_SECONDS), min(request.start, MAX_START_SECONDS)
    budget = Budget(loop.time, loop.time() + seconds, start)
    try:
        async with asyncio.timeout(seconds + start + 2 * CLOSING_SECONDS):
            report, surface = await _converse(request, budget)
    except Exception as error:
        # The boundary to a hostile server and to an SDK whose errors come in groups: all of them mean "not ready".
        report, surface = ProbeReport(ok=False, message=_why(budget, error)), Surface()
    return ProbeResult(probe=request.probe, report=report, surface=surface, refused=budget.refused)


def _why(budget: Budget, error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    if isinstance(error, TimeoutError):
        return budget.failure or "it did not answer in time"
    return budget.failure or _shown(f"{type(error).__name__}: {error}")


def _shown(text: str) -> str:
    """Text of a server, fit for a status field."""
    return "".join(c if c.isprintable() else " " for c in text[:_SHOWN_CHARACTERS])


@asynccontextmanager
async def _client(request: ProbeRequest, budget: Budget, shown: ShownTools, mode: str) -> AsyncGenerator[Client]:
    headers = {"Host": f"localhost:{request.port}", "Accept-Encoding": "identity"}
    if request.bridge is not None:
        base, headers = "http://localhost", {**headers, "Host": "localhost", PROBE: request.ticket}
    else:
        base = f"http://{f'[{request.address}]' if ':' in request.address else request.address}:{request.port}"
    http = httpx2.AsyncClient(
        transport=BoundedTransport(budget, shown, request.bridge),
        trust_env=False,
        headers=headers,
        # The transport has deadlines for all that it does.
        timeout=None,
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(http)
        url = f"{base}{request.path}"
        transport = streamable_http_client(url, http_client=http, max_sse_event_size=MAX_RESPONSE_BYTES)
        with budget.starting():
            if request.start and mode == "auto":
                mode = await _era(http, url)
            connecting = Client(transport, client_info=_INFO, cache=None, mode=mode)
            client = await stack.enter_async_context(connecting)
        yield client


async def _era(http: httpx2.AsyncClient, url: str) -> str:
    """How to begin with a server whose process is started by this question: the SDK waits 10 s for its answer.

    The broker judges what the process says, and waits as long as it does (ADR 0022).
    """
    meta = {
        PROTOCOL_VERSION_META_KEY: LATEST_MODERN_VERSION,
        CLIENT_INFO_META_KEY: _INFO.model_dump(by_alias=True, exclude_none=True),
        CLIENT_CAPABILITIES_META_KEY: {},
    }
    question = {"jsonrpc": "2.0", "id": "era", "method": "server/discover", "params": {"_meta": meta}}
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": LATEST_MODERN_VERSION,
        "Mcp-Method": "server/discover",
    }
    answer = await http.post(url, json=question, headers=headers)
    try:
        code = JSONRPCError.model_validate_json(answer.content).error.code
    except ValidationError:
        return "auto"
    return "legacy" if code == SERVER_ERROR else "auto"


async def _converse(request: ProbeRequest, budget: Budget) -> tuple[ProbeReport, Surface]:
    shown = ShownTools()
    async with _client(request, budget, shown, "auto") as client:
        can = client.server_capabilities
        tools = await _all_tools(client) if can.tools is not None else []
        prompts = await _all_prompts(client) if can.prompts is not None else ()
        resources = await _all_resources(client) if can.resources is not None else ()
        version, info = client.protocol_version, client.server_info
    if version in MODERN_PROTOCOL_VERSIONS and can.tools is not None:
        tools += await _tools_of_the_handshake(request, budget, shown)
    entries = _entries(shown, tools)
    surface = Surface(
        tools=tuple(entry.name for entry in entries),
        hashes=tuple(entry.hash for entry in entries),
        prompts=prompts,
        resources=resources,
    )
    return _report(version, info, can, entries), surface


async def _tools_of_the_handshake(request: ProbeRequest, budget: Budget, shown: ShownTools) -> list[Tool]:
    """What a server of the stateless revision lists after an initialize handshake; nothing if it knows none.

    The other way round there is nothing to look for: the stateless revision is asked for first.
    """
    seconds = OTHER_ERA_SECONDS if request.bridge is None else BRIDGED_OTHER_ERA_SECONDS
    # As long as the first process took.
    start = min(budget.start, budget.started)
    left = Budget(budget.now, min(budget.deadline, budget.now() + seconds), start)
    try:
        async with (
            asyncio.timeout(seconds + start + CLOSING_SECONDS),
            _client(request, left, shown, "legacy") as client,
        ):
            return await _all_tools(client) if client.server_capabilities.tools is not None else []
    except Exception:
        # The same boundary as that of the whole probe. Most often the server speaks the stateless revision only;
        # whatever else it is, it takes nothing from the conversation that has worked.
        return []


def _entries(shown: ShownTools, tools: list[Tool]) -> list[ShownTool]:
    """Every definition, of either era. Raises `ProbeFailed`."""
    seen = {entry.name for entry in shown.found}
    unseen = {tool.name: tool for tool in tools if tool.name not in seen}
    # What was listed in a form that no filter recognises: nobody whose tools are pinned will get it.
    problem = "it was not sent as the tool of a list"
    missing = [ShownTool(name, opaque(name), tool.description or "", problem) for name, tool in unseen.items()]
    entries = [*shown.found, *missing]
    if len(entries) > 2 * MAX_TOOLS:
        raise ProbeFailed(f"it shows more than {2 * MAX_TOOLS} definitions of tools")
    if any(len(entry.name) > MAX_NAME for entry in entries):
        raise ProbeFailed(f"the name of one of its tools has more than {MAX_NAME} characters")
    return entries


async def _all_tools(client: Client) -> list[Tool]:
    async def page(cursor: str | None) -> tuple[list[Tool], str | None]:
        found = await client.list_tools(cursor=cursor)
        return found.tools, found.next_cursor

    return await _all(page, lambda tool: tool.name, "tools")


async def _all_prompts(client: Client) -> tuple[str, ...] | None:
    """Names, or None if they cannot be listed: that is no reason for a server not to be ready."""

    async def page(cursor: str | None) -> tuple[list[str], str | None]:
        found = await client.list_prompts(cursor=cursor)
        return [prompt.name for prompt in found.prompts], found.next_cursor

    try:
        return tuple(await _all(page, str, "prompts"))
    except (MCPError, ProbeFailed, ValidationError):
        return None


async def _all_resources(client: Client) -> tuple[str, ...] | None:
    """URIs, and the URI templates if there are any; None if the resources cannot be listed."""

    async def page(cursor: str | None) -> tuple[list[str], str | None]:
        found = await client.list_resources(cursor=cursor)
        return [str(resource.uri) for resource in found.resources], found.next_cursor

    async def page_of_templates(cursor: str | None) -> tuple[list[str], str | None]:
        found = await client.list_resource_templates(cursor=cursor)
        return [template.uri_template for template in found.resource_templates], found.next_cursor

    try:
        listed = await _all(page, str, "resources")
    except (MCPError, ProbeFailed, ValidationError):
        return None
    try:
        return (*listed, *await _all(page_of_templates, str, "resource templates"))
    except (MCPError, ProbeFailed, ValidationError):
        # Many servers with resources have no templates, and say "method not found".
        return tuple(listed)


async def _all(
    page: Callable[[str | None], Awaitable[tuple[list[Item], str | None]]], name: Callable[[Item], str], what: str
) -> list[Item]:
    """Every page of a list, with bounds. Raises `ProbeFailed`."""
    items: list[Item] = []
    cursors: set[str] = set()
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        more, cursor = await page(cursor)
        items += more
        if len(items) > MAX_TOOLS:
            raise ProbeFailed(f"it lists more than {MAX_TOOLS} {what}")
        if any(len(name(item)) > MAX_NAME for item in more):
            raise ProbeFailed(f"the name of one of its {what} has more than {MAX_NAME} characters")
        if cursor is None:
            return items
        if cursor in cursors:
            raise ProbeFailed(f"its list of {what} repeats a cursor and would never end")
        cursors.add(cursor)
    raise ProbeFailed(f"its list of {what} has more than {MAX_PAGES} pages")


def _report(
    version: str, info: Implementation | None, can: ServerCapabilities, entries: list[ShownTool]
) -> ProbeReport:
    capabilities: dict[str, Any] = can.model_dump(exclude_none=True, by_alias=True)
    problems = (f"{entry.name}: {entry.problem}" for entry in entries if entry.problem is not None)
    problem = next(problems, None)
    return ProbeReport(
        ok=True,
        protocol_version=_shown(version),
        server_info=None if info is None else ServerInfo(name=_shown(info.name), version=_shown(info.version)),
        capabilities=tuple(sorted(_shown(name) for name in capabilities)[:32]),
        tools=tuple(
            ToolSummary(
                name=_shown(entry.name),
                description=_shown(entry.description),
                hash=None if entry.problem is not None else entry.hash,
            )
            for entry in entries[:_SHOWN_TOOLS]
        ),
        tools_total=len(entries),
        tools_truncated=len(entries) > _SHOWN_TOOLS,
        tools_hash=surface_hash(entry.hash for entry in entries),
        tools_problem=None if problem is None else _shown(problem),
    )
