"""A server that answers every scenario of the official conformance suite, at all revisions.

`python -m support.conformance.server PORT` serves it on loopback, with `sse` after it by the older transport;
`support.conformance.forks` on pipes of processes.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import uvicorn
from mcp.server.caching import CacheHint
from mcp.server.lowlevel.server import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.sse import SseServerTransport
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CompleteRequestParams,
    CompleteResult,
    EmptyResult,
    GetPromptRequestParams,
    GetPromptResult,
    InputRequiredResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    ReadResourceRequestParams,
    ReadResourceResult,
    SetLevelRequestParams,
    SubscribeRequestParams,
    UnsubscribeRequestParams,
)
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from support.conformance import contents, rounds, tools
from support.conformance.contents import text
from support.conformance.tasks import Tasks
from support.conformance.tools import Context, Outcome, ServedTool
from support.gateway.event_store import MemoryEvents

NAME = "conformance"
RETRY_MILLISECONDS = 100
FRESH = CacheHint(ttl_ms=1000, scope="private")

_SIMPLE: dict[str, Any] = {"name": "test_simple_prompt", "description": "Always the same"}
_PROMPTS: tuple[dict[str, Any], ...] = (
    _SIMPLE,
    {
        "name": "test_prompt_with_arguments",
        "description": "Repeats its arguments",
        "arguments": [{"name": "arg1", "required": True}, {"name": "arg2", "required": True}],
    },
    {
        "name": "test_prompt_with_embedded_resource",
        "description": "Holds a resource",
        "arguments": [{"name": "resourceUri", "required": True}],
    },
    {"name": "test_prompt_with_image", "description": "Holds an image"},
    {"name": rounds.PROMPT, "description": "Asks what it is about"},
)
_RESOURCES: dict[str, dict[str, Any]] = {
    "test://static-text": {"mimeType": "text/plain", "text": "This is the content of the static text resource."},
    "test://static-binary": {"mimeType": "image/png", "blob": contents.PNG},
    "test://watched-resource": {"mimeType": "text/plain", "text": "Watched."},
}
_TEMPLATE = "test://template/{id}/data"
_FROM_TEMPLATE = re.compile(r"test://template/([^/]+)/data")


def _prompt_messages(params: GetPromptRequestParams) -> list[dict[str, Any]]:
    arguments = params.arguments or {}
    if params.name == "test_simple_prompt":
        return [text("This is a simple prompt for testing.")]
    if params.name == "test_prompt_with_arguments":
        return [text(f"Prompt with arguments: arg1='{arguments.get('arg1')}', arg2='{arguments.get('arg2')}'")]
    if params.name == "test_prompt_with_embedded_resource":
        uri = arguments.get("resourceUri", "test://example-resource")
        block = contents.embedded(uri, "text/plain", "Embedded resource content for testing.")
        return [block, text("Please process the embedded resource above.")]
    if params.name == "test_prompt_with_image":
        return [contents.IMAGE, text("Please analyze the image above.")]
    raise MCPError(INVALID_PARAMS, f"Unknown prompt: {params.name}")


async def _list_prompts(_ctx: Context, _params: object) -> ListPromptsResult:
    return ListPromptsResult.model_validate({"prompts": _PROMPTS})


async def _get_prompt(_ctx: Context, params: GetPromptRequestParams) -> GetPromptResult | InputRequiredResult:
    if params.name == rounds.PROMPT:
        return await rounds.prompt(params)
    messages = [{"role": "user", "content": block} for block in _prompt_messages(params)]
    return GetPromptResult.model_validate({"messages": messages})


async def _list_resources(_ctx: Context, _params: object) -> ListResourcesResult:
    listed = [
        {"uri": uri, "name": uri.removeprefix("test://"), "description": "Never changes", "mimeType": r["mimeType"]}
        for uri, r in _RESOURCES.items()
    ]
    return ListResourcesResult.model_validate({"resources": listed})


async def _list_templates(_ctx: Context, _params: object) -> ListResourceTemplatesResult:
    template = {"uriTemplate": _TEMPLATE, "name": "template", "description": "Data by id"}
    return ListResourceTemplatesResult.model_validate(
        {"resourceTemplates": [{**template, "mimeType": "application/json"}]}
    )


async def _read_resource(_ctx: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
    found = _RESOURCES.get(params.uri)
    if match := _FROM_TEMPLATE.fullmatch(params.uri):
        data = f'{{"id":"{match[1]}","templateTest":true,"data":"Data for ID: {match[1]}"}}'
        found = {"mimeType": "application/json", "text": data}
    if found is None:
        raise MCPError(INVALID_PARAMS, "Resource not found", {"uri": params.uri})
    return ReadResourceResult.model_validate({"contents": [{"uri": params.uri, **found}]})


async def _subscribe(_ctx: Context, _params: SubscribeRequestParams | UnsubscribeRequestParams) -> EmptyResult:
    return EmptyResult()


async def _set_level(_ctx: Context, _params: SetLevelRequestParams) -> EmptyResult:
    return EmptyResult()


async def _complete(_ctx: Context, params: CompleteRequestParams) -> CompleteResult:
    values = [word for word in ("paris", "park", "party") if word.startswith(params.argument.value)]
    return CompleteResult.model_validate({"completion": {"values": values, "total": len(values), "hasMore": False}})


def build() -> Server[Any]:
    """The server with all its handlers."""
    bus = InMemorySubscriptionBus()
    tasks = Tasks()
    served = {tool.name: tool for tool in (*tools.TOOLS, *tools.changing(bus), *rounds.TOOLS, *tasks.tools())}

    async def list_tools(_ctx: Context, _params: object) -> ListToolsResult:
        return ListToolsResult.model_validate({"tools": [_listed(tool) for tool in served.values()]})

    async def call_tool(ctx: Context, params: CallToolRequestParams) -> Outcome:
        if params.name not in served:
            raise MCPError(INVALID_PARAMS, f"Unknown tool: {params.name}")
        return await served[params.name].handler(ctx, params)

    server: Server[Any] = Server(
        NAME,
        version="1.0.0",
        cache_hints=dict.fromkeys(
            ("tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read"), FRESH
        ),
        on_list_tools=list_tools,
        on_list_prompts=_list_prompts,
        on_get_prompt=_get_prompt,
        on_list_resources=_list_resources,
        on_list_resource_templates=_list_templates,
        on_read_resource=_read_resource,
        on_subscribe_resource=_subscribe,
        on_unsubscribe_resource=_subscribe,
        on_subscriptions_listen=ListenHandler(bus),
        on_completion=_complete,
    )
    server.add_request_handler("logging/setLevel", SetLevelRequestParams, _set_level)
    server.add_request_handler("tools/call", CallToolRequestParams, call_tool)
    tasks.register(server)
    server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=NAME))
    return server


def _listed(tool: ServedTool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "inputSchema": tool.schema}


class SseStreams:
    """The GET of the SSE transport: a session of the server for each."""

    def __init__(self, server: Server[Any], transport: SseServerTransport):
        self._server = server
        self._transport = transport

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve until either side ends."""
        async with self._transport.connect_sse(scope, receive, send) as (heard, said):
            await self._server.run(heard, said, self._server.create_initialization_options())


def sse_app() -> Starlette:
    """The same server by the SSE transport."""
    transport = SseServerTransport("/messages/")
    routes = [Route("/sse", SseStreams(build(), transport)), Mount("/messages/", app=transport.handle_post_message)]
    return Starlette(routes=routes)


async def on_pipes() -> None:
    """Serves on standard input and output, to the end of the input."""
    server = build()
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def main() -> None:
    """Serves on the port that is the first argument."""
    app = (
        sse_app()
        if sys.argv[2:] == ["sse"]
        else build().streamable_http_app(event_store=MemoryEvents(), retry_interval=RETRY_MILLISECONDS)
    )
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
