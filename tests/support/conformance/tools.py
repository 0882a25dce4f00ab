"""Tools of the conformance server that answer in one round."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import PromptsListChanged, SubscriptionBus, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolRequestParams,
    CallToolResult,
    CreateMessageRequest,
    CreateMessageResult,
    InputRequiredResult,
    TextContent,
)

from support.conformance import contents
from support.conformance.contents import text

Context = ServerRequestContext[Any, Any]
Outcome = CallToolResult | InputRequiredResult | dict[str, Any]
"""A dict is a result that only an extension knows."""
Handler = Callable[[Context, CallToolRequestParams], Awaitable[Outcome]]

PAUSE = 0.05
"""Seconds between the notifications of one call, as the suite asks for."""


@dataclass(frozen=True)
class ServedTool:
    """A tool with its code."""

    name: str
    handler: Handler
    schema: dict[str, Any] = field(default_factory=lambda: contents.EMPTY_SCHEMA)

    @property
    def description(self) -> str:
        """The first line of the handler's docstring, else a line made of the name."""
        return (self.handler.__doc__ or f"Conformance: {self.name.replace('_', ' ')}").splitlines()[0]


def result(*blocks: dict[str, Any], is_error: bool = False) -> CallToolResult:
    """A complete result."""
    return CallToolResult.model_validate({"content": list(blocks), "isError": is_error})


def _fixed(*blocks: dict[str, Any], is_error: bool = False) -> Handler:
    async def handler(_ctx: Context, _params: CallToolRequestParams) -> CallToolResult:
        return result(*blocks, is_error=is_error)

    return handler


def _one_string(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}


async def _log(ctx: Context, message: str) -> None:
    # Deprecated in the newest revision, and part of the older ones that are tested here.
    await ctx.session.send_log_message("info", message, related_request_id=ctx.request_id)  # pyright: ignore[reportDeprecated]


async def with_logging(ctx: Context, _params: CallToolRequestParams) -> CallToolResult:
    """Logs three times while it works."""
    await _log(ctx, "Tool execution started")
    await anyio.sleep(PAUSE)
    await _log(ctx, "Tool processing data")
    await anyio.sleep(PAUSE)
    await _log(ctx, "Tool execution completed")
    return result(text("Logged three times."))


async def with_progress(ctx: Context, _params: CallToolRequestParams) -> CallToolResult:
    """Reports progress three times while it works."""
    for progress in (0, 50, 100):
        await ctx.session.report_progress(progress, 100)
        await anyio.sleep(PAUSE)
    return result(text("Reported progress three times."))


async def sampling(ctx: Context, params: CallToolRequestParams) -> CallToolResult:
    """Asks the client's model."""
    prompt = str((params.arguments or {}).get("prompt", ""))
    request = CreateMessageRequest.model_validate(
        {
            "method": "sampling/createMessage",
            "params": {"messages": [{"role": "user", "content": text(prompt)}], "maxTokens": 100},
        }
    )
    answer = await ctx.session.send_request(request, CreateMessageResult, metadata=_on_this_stream(ctx))
    said = answer.content.text if isinstance(answer.content, TextContent) else answer.content.type
    return result(text(f"LLM response: {said}"))


def _on_this_stream(ctx: Context) -> ServerMessageMetadata:
    return ServerMessageMetadata(related_request_id=ctx.request_id)


async def _ask(ctx: Context, message: str, schema: dict[str, Any], said: str) -> CallToolResult:
    answer = await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)
    return result(text(f"{said}action={answer.action}, content={json.dumps(answer.content or {})}"))


async def elicitation(ctx: Context, params: CallToolRequestParams) -> CallToolResult:
    """Asks the user for name and address."""
    message = str((params.arguments or {}).get("message", ""))
    return await _ask(ctx, message, contents.PERSON_SCHEMA, "User response: ")


async def elicitation_defaults(ctx: Context, _params: CallToolRequestParams) -> CallToolResult:
    """Asks with a default for every primitive type."""
    return await _ask(ctx, "Please review the defaults", contents.DEFAULTS_SCHEMA, "Elicitation completed: ")


async def elicitation_enums(ctx: Context, _params: CallToolRequestParams) -> CallToolResult:
    """Asks with every way to write an enumeration."""
    return await _ask(ctx, "Please choose", contents.ENUMS_SCHEMA, "Elicitation completed: ")


async def reconnection(ctx: Context, _params: CallToolRequestParams) -> CallToolResult:
    """Closes its own stream in the middle, and goes on."""
    if ctx.close_sse_stream is not None:
        # Time for the stream's first event to leave: nothing tells when it has, and a stream closed before has none.
        await anyio.sleep(4 * PAUSE)
        await ctx.close_sse_stream()
    await anyio.sleep(2 * PAUSE)
    return result(text("Answered after the stream was closed."))


async def missing_capability(ctx: Context, _params: CallToolRequestParams) -> CallToolResult:
    """Works only for clients with a model."""
    declared = ctx.session.client_capabilities
    if declared is None or declared.sampling is None:
        data: dict[str, Any] = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, "This tool needs a client with sampling", data)
    return result(text("The client can sample."))


async def logging_tool(ctx: Context, _params: CallToolRequestParams) -> CallToolResult:
    """Logs once, if the request allows it."""
    await _log(ctx, "logged by test_logging_tool")
    return result(text("Logged if allowed."))


def changing(bus: SubscriptionBus) -> tuple[ServedTool, ...]:
    """Tools that tell subscribers about a change."""

    async def tools_changed(_ctx: Context, _params: CallToolRequestParams) -> CallToolResult:
        """Says that the list of tools changed."""
        await bus.publish(ToolsListChanged())
        return result(text("Told."))

    async def prompts_changed(_ctx: Context, _params: CallToolRequestParams) -> CallToolResult:
        """Says that the list of prompts changed."""
        await bus.publish(PromptsListChanged())
        return result(text("Told."))

    return (
        ServedTool("test_trigger_tool_change", tools_changed),
        ServedTool("test_trigger_prompt_change", prompts_changed),
    )


_MIRRORED = {
    "type": "object",
    "properties": {"region": {"type": "string", "x-mcp-header": "Region"}, "query": {"type": "string"}},
    "required": ["region"],
}

TOOLS: tuple[ServedTool, ...] = (
    ServedTool("test_simple_text", _fixed(text("This is a simple text response for testing."))),
    ServedTool("test_image_content", _fixed(contents.IMAGE)),
    ServedTool("test_audio_content", _fixed(contents.AUDIO)),
    ServedTool(
        "test_embedded_resource",
        _fixed(contents.embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")),
    ),
    ServedTool(
        "test_multiple_content_types",
        _fixed(
            text("Multiple content types test:"),
            contents.IMAGE,
            contents.embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
        ),
    ),
    ServedTool(
        "test_error_handling", _fixed(text("This tool intentionally returns an error for testing"), is_error=True)
    ),
    ServedTool("test_tool_with_logging", with_logging),
    ServedTool("test_tool_with_progress", with_progress),
    ServedTool("test_sampling", sampling, _one_string("prompt")),
    ServedTool("test_elicitation", elicitation, _one_string("message")),
    ServedTool("test_elicitation_sep1034_defaults", elicitation_defaults),
    ServedTool("test_elicitation_sep1330_enums", elicitation_enums),
    ServedTool("test_reconnection", reconnection),
    ServedTool("test_missing_capability", missing_capability),
    ServedTool("test_logging_tool", logging_tool),
    ServedTool("test_custom_header", _fixed(text("The header matched the argument.")), _MIRRORED),
    ServedTool(contents.JSON_SCHEMA_TOOL, _fixed(text("Valid.")), contents.RICH_SCHEMA),
)
