"""The tasks extension (SEP-2663) on the conformance server: tools whose result is fetched later."""

from __future__ import annotations

import asyncio
import datetime
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp_types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    InputRequiredResult,
    RequestParams,
)
from pydantic import Field
from starlette.requests import Request

from support.conformance.contents import text
from support.conformance.rounds import answer, ask, required
from support.conformance.tools import Context, ServedTool, result

EXTENSION = "io.modelcontextprotocol/tasks"
TTL_MILLISECONDS = 60_000
POLL_MILLISECONDS = 50

Work = Callable[["Job"], Awaitable[CallToolResult]]


class ById(RequestParams):
    """Names a task."""

    task_id: str = Field(alias="taskId")


class Update(ById):
    """Answers questions of a task."""

    input_responses: dict[str, Any] = Field(default_factory=dict[str, Any], alias="inputResponses")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()


@dataclass
class Job:
    """A task of the protocol."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: str = field(default_factory=_now)
    updated: str = field(default_factory=_now)
    status: str = "working"
    outcome: dict[str, Any] = field(default_factory=dict[str, Any])
    asked: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    running: asyncio.Task[None] | None = None

    def document(self) -> dict[str, Any]:
        """The task on the wire, without what its status brings."""
        return {
            "taskId": self.id,
            "status": self.status,
            "createdAt": self.created,
            "lastUpdatedAt": self.updated,
            "ttlMs": TTL_MILLISECONDS,
            "pollIntervalMs": POLL_MILLISECONDS,
        }

    def turn(self, status: str, outcome: dict[str, Any] | None = None) -> None:
        """Changes the status."""
        self.status, self.outcome, self.updated = status, outcome or {}, _now()

    async def ask(self, requests: dict[str, dict[str, Any]]) -> None:
        """Waits until the client answered all of them."""
        self.asked = dict(requests)
        self.turn("input_required")
        await self.answered.wait()
        self.turn("working")

    async def run(self, work: Work) -> None:
        """Does the work and keeps what came of it."""
        try:
            done = await work(self)
        except MCPError as error:
            self.turn("failed", {"error": {"code": error.code, "message": error.message}})
        except asyncio.CancelledError:
            self.turn("cancelled")
            raise
        else:
            self.turn("completed", {"result": done.model_dump(by_alias=True, mode="json", exclude_none=True)})


def _declared(ctx: Context) -> bool:
    capabilities = ctx.session.client_capabilities
    return EXTENSION in ((capabilities.extensions if capabilities else None) or {})


def _check_name(ctx: Context, task_id: str) -> None:
    """The SDK compares Mcp-Name for core methods only."""
    request = cast("Request", ctx.request)
    if request.headers.get("mcp-name") != task_id:
        raise MCPError(HEADER_MISMATCH, "Mcp-Name does not match params.taskId")


class Tasks:
    """All tasks of a server."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def register(self, server: Server[Any]) -> None:
        """Adds the extension and its methods."""
        server.extensions[EXTENSION] = {}
        server.add_request_handler("tasks/get", ById, self._get)
        server.add_request_handler("tasks/update", Update, self._update)
        server.add_request_handler("tasks/cancel", ById, self._cancel)

    def start(self, work: Work) -> dict[str, Any]:
        """A new task, as the answer to the call that made it."""
        job = Job()
        self._jobs[job.id] = job
        job.running = asyncio.create_task(job.run(work))
        return {"resultType": "task", **job.document()}

    def _find(self, ctx: Context, params: ById) -> Job:
        require_client_extension(ctx, EXTENSION)
        _check_name(ctx, params.task_id)
        job = self._jobs.get(params.task_id)
        if job is None:
            raise MCPError(INVALID_PARAMS, "Unknown task")
        return job

    async def _get(self, ctx: Context, params: ById) -> dict[str, Any]:
        job = self._find(ctx, params)
        asked = {"inputRequests": job.asked} if job.status == "input_required" else {}
        return {**job.document(), **job.outcome, **asked}

    async def _update(self, ctx: Context, params: Update) -> dict[str, Any]:
        job = self._find(ctx, params)
        for key in params.input_responses:
            job.asked.pop(key, None)
        if not job.asked:
            job.answered.set()
        return {}

    async def _cancel(self, ctx: Context, params: ById) -> dict[str, Any]:
        job = self._find(ctx, params)
        if job.running is not None and not job.running.done():
            job.running.cancel()
        return {}

    def tools(self) -> tuple[ServedTool, ...]:
        """The tools that the suite calls."""
        number = {"type": "object", "properties": {"seconds": {"type": "number"}, "label": {"type": "string"}}}
        name = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
        return (
            ServedTool("greet", _greet, name),
            ServedTool("slow_compute", self._optional(_compute), number),
            ServedTool("failing_job", self._required(_fail)),
            ServedTool("protocol_error_job", self._optional(_break)),
            ServedTool("confirm_delete", self._optional(_confirm), {"type": "object"}),
            ServedTool("multi_input", self._optional(_ask_twice)),
            ServedTool("test_tool_with_task", self._after_a_round),
        )

    def _optional(self, make: Callable[[CallToolRequestParams], Work]) -> Callable[..., Awaitable[Any]]:
        async def handler(ctx: Context, params: CallToolRequestParams) -> CallToolResult | dict[str, Any]:
            return self.start(make(params)) if _declared(ctx) else await make(params)(Job())

        return handler

    def _required(self, make: Callable[[CallToolRequestParams], Work]) -> Callable[..., Awaitable[Any]]:
        async def handler(ctx: Context, params: CallToolRequestParams) -> dict[str, Any]:
            require_client_extension(ctx, EXTENSION)
            return self.start(make(params))

        return handler

    async def _after_a_round(self, ctx: Context, params: CallToolRequestParams) -> InputRequiredResult | dict[str, Any]:
        require_client_extension(ctx, EXTENSION)
        name = answer(params.input_responses, "user_name", "name")
        if not isinstance(name, str):
            return required({"user_name": ask("What is your name?", "name")}, "asked")

        async def work(_job: Job) -> CallToolResult:
            return result(text(f"Hello, {name}!"))

        return self.start(work)


async def _greet(_ctx: Context, params: CallToolRequestParams) -> CallToolResult:
    return result(text(f"Hello, {(params.arguments or {}).get('name')}!"))


def _compute(params: CallToolRequestParams) -> Work:
    seconds = float((params.arguments or {}).get("seconds", 0))

    async def work(_job: Job) -> CallToolResult:
        await asyncio.sleep(seconds)
        return result(text(f"Computed for {seconds} seconds."))

    return work


def _fail(_params: CallToolRequestParams) -> Work:
    async def work(_job: Job) -> CallToolResult:
        return result(text("This job always fails."), is_error=True)

    return work


def _break(_params: CallToolRequestParams) -> Work:
    async def work(_job: Job) -> CallToolResult:
        raise MCPError(INTERNAL_ERROR, "This job always breaks")

    return work


def _confirm(params: CallToolRequestParams) -> Work:
    async def work(job: Job) -> CallToolResult:
        await job.ask(
            {"confirmation": ask(f"Delete {(params.arguments or {}).get('filename')}?", "confirm", "boolean")}
        )
        return result(text("Answered."))

    return work


def _ask_twice(_params: CallToolRequestParams) -> Work:
    async def work(job: Job) -> CallToolResult:
        await job.ask({"first": ask("Who is first?", "name"), "second": ask("Who is second?", "name")})
        return result(text("Both answered."))

    return work
