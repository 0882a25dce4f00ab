"""The readiness probe: one bounded MCP conversation with a server that may be hostile (design §3, §5)."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import Implementation, ServerCapabilities, Tool
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from toolbox_dtma import __version__
from toolbox_dtma.gateway.definitions import opaque, surface_hash
from toolbox_dtma.gateway.headers import PROBE
from toolbox_dtma.gateway.shown_tools import ShownTool, ShownTools
from toolbox_dtma.link.messages import ProbeRequest, ProbeResult, Surface
from toolbox_dtma.wire import ProbeReport, ServerInfo, ToolSummary

MAX_PAGES = 100
MAX_TOOLS = 1000
"""Also for prompts, resources and resource templates."""
MAX_SECONDS = 10.0
MAX_REQUESTS = 250
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
MAX_CONVERSATION_BYTES = 8 * 1024 * 1024
MAX_NAME = 512
CLOSING_SECONDS = 1.0
"""What the farewell (DELETE of the session) may take beyond the deadline."""
OTHER_ERA_SECONDS = 2.0
"""What a server that speaks the stateless revision may take to list its tools after a handshake as well."""
BRIDGED_OTHER_ERA_SECONDS = 5.0
"""The same behind the session broker, where the handshake takes a process of its own that has to start."""
_SHOWN_TOOLS = 256
_SHOWN_CHARACTERS = 256


Item = TypeVar("Item")


class ProbeFailed(Exception):
    """The conversation did not come about; the message says why."""


class _OutOfBounds(httpx2.TransportError):
    """A bound was met: raised into the SDK, which ends the conversation."""


@dataclass(slots=True)
class _Budget:
    """What is left of one conversation, and what ended it."""

    now: Callable[[], float]
    deadline: float
    requests: int = MAX_REQUESTS
    bytes: int = MAX_CONVERSATION_BYTES
    failure: str | None = None
    refused: bool = False

    def fail(self, why: str) -> _OutOfBounds:
        """Remember the first failure: what the SDK makes of it later is less clear."""
        self.failure = self.failure or why
        return _OutOfBounds(why)

    def seconds(self, method: str) -> float:
        """Time left for a request."""
        left = self.deadline - self.now() + (CLOSING_SECONDS if method == "DELETE" else 0.0)
        if left <= 0:
            raise self.fail("it did not answer in time")
        return left


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(
        self, inner: httpx2.AsyncByteStream, budget: _Budget, method: str, read: Callable[[bytes, bool], None]
    ):
        self._inner = inner
        self._budget = budget
        self._method = method
        self._read = read

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = 0
        chunks = self._inner.__aiter__()
        while True:
            try:
                async with asyncio.timeout(self._budget.seconds(self._method)):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                self._read(b"", True)
                return
            except TimeoutError:
                raise self._budget.fail("it did not answer in time") from None
            received += len(chunk)
            self._budget.bytes -= len(chunk)
            if received > MAX_RESPONSE_BYTES or self._budget.bytes < 0:
                raise self._budget.fail("it answered with too much data")
            self._read(chunk, False)
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedTransport(httpx2.AsyncBaseTransport):
    """Limits time, requests and bytes; refuses redirects and encodings; keeps no cookies; tells what it reads."""

    def __init__(self, budget: _Budget, shown: ShownTools, bridge: str | None):
        # Plain HTTP to a container: certificates are never looked at, and loading them takes 20 ms.
        self._inner = httpx2.AsyncHTTPTransport(verify=False, trust_env=False, uds=bridge)
        self._bridged = bridge is not None
        self._budget = budget
        self._shown = shown

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        budget = self._budget
        budget.requests -= 1
        if budget.requests < 0:
            raise budget.fail("it kept the conversation going for too long")
        try:
            async with asyncio.timeout(budget.seconds(request.method)):
                response = await self._inner.handle_async_request(request)
        except TimeoutError:
            raise budget.fail("it did not answer in time") from None
        except httpx2.ConnectError as error:
            if self._bridged:
                raise budget.fail("the session broker does not answer") from None
            budget.refused = _was_refused(error)
            raise budget.fail(
                "nothing listens on its port" if budget.refused else "it cannot be connected to"
            ) from None
        except httpx2.TransportError as error:
            raise budget.fail(f"the connection broke ({type(error).__name__})") from None
        if 300 <= response.status_code < 400:
            await response.aclose()
            raise budget.fail(f"it answered with a redirect ({response.status_code})")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            raise budget.fail("it answered with an encoding that was not asked for")
        headers = [(name, value) for name, value in response.headers.raw if name.lower() != b"set-cookie"]
        kind = response.headers.get("content-type", "")
        stream = response.stream
        if not isinstance(stream, httpx2.AsyncByteStream):
            raise budget.fail("it answered in an unknown way")
        return httpx2.Response(
            response.status_code,
            headers=headers,
            stream=_BoundedStream(stream, budget, request.method, self._shown.reader(kind)),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


def _was_refused(error: BaseException | None) -> bool:
    while error is not None and not (isinstance(error, OSError) and error.errno == errno.ECONNREFUSED):
        error = error.__cause__ or error.__context__
    return error is not None


async def probe(request: ProbeRequest) -> ProbeResult:
    """Negotiate, read every page of tools/list, close the session. Never raises for what a server does."""
    loop = asyncio.get_running_loop()
    seconds = min(request.deadline, MAX_SECONDS)
    budget = _Budget(loop.time, loop.time() + seconds)
    try:
        async with asyncio.timeout(seconds + 2 * CLOSING_SECONDS):
            report, surface = await _converse(request, budget)
    except Exception as error:
        # The boundary to a hostile server and to an SDK whose errors come in groups: all of them mean "not ready".
        report, surface = ProbeReport(ok=False, message=_why(budget, error)), Surface()
    return ProbeResult(probe=request.probe, report=report, surface=surface, refused=budget.refused)


def _why(budget: _Budget, error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    if isinstance(error, TimeoutError):
        return budget.failure or "it did not answer in time"
    return budget.failure or _shown(f"{type(error).__name__}: {error}")


def _shown(text: str) -> str:
    """Text of a server, fit for a status field."""
    return "".join(c if c.isprintable() else " " for c in text[:_SHOWN_CHARACTERS])


@asynccontextmanager
async def _client(request: ProbeRequest, budget: _Budget, shown: ShownTools, mode: str) -> AsyncGenerator[Client]:
    headers = {"Host": f"localhost:{request.port}", "Accept-Encoding": "identity"}
    if request.bridge is not None:
        base, headers = "http://localhost", {**headers, "Host": "localhost", PROBE: request.ticket}
    else:
        base = f"http://{f'[{request.address}]' if ':' in request.address else request.address}:{request.port}"
    http = httpx2.AsyncClient(
        transport=_BoundedTransport(budget, shown, request.bridge),
        trust_env=False,
        headers=headers,
        timeout=httpx2.Timeout(MAX_SECONDS),
    )
    async with http:
        transport = streamable_http_client(
            f"{base}{request.path}", http_client=http, max_sse_event_size=MAX_RESPONSE_BYTES
        )
        info = Implementation(name="magic-toolbox-probe", version=__version__)
        async with Client(transport, client_info=info, cache=None, mode=mode) as client:
            yield client


async def _converse(request: ProbeRequest, budget: _Budget) -> tuple[ProbeReport, Surface]:
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


async def _tools_of_the_handshake(request: ProbeRequest, budget: _Budget, shown: ShownTools) -> list[Tool]:
    """What a server of the stateless revision lists after an initialize handshake; nothing if it knows none.

    The other way round there is nothing to look for: the stateless revision is asked for first.
    """
    seconds = OTHER_ERA_SECONDS if request.bridge is None else BRIDGED_OTHER_ERA_SECONDS
    left = _Budget(budget.now, min(budget.deadline, budget.now() + seconds))
    try:
        async with (
            asyncio.timeout(seconds + CLOSING_SECONDS),
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
