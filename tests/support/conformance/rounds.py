"""Tools and a prompt of the conformance server that ask the client for input, in the rounds of 2026-07-28."""

from __future__ import annotations

from typing import Any

from mcp_types import (
    CallToolRequestParams,
    CreateMessageResult,
    ElicitResult,
    GetPromptRequestParams,
    GetPromptResult,
    InputRequiredResult,
    InputResponses,
    ListRootsResult,
    TextContent,
)

from support.conformance.contents import text
from support.conformance.tools import Context, Outcome, ServedTool, result


def ask(message: str, name: str, kind: str = "string") -> dict[str, Any]:
    """A form with one required field."""
    schema = {"type": "object", "properties": {name: {"type": kind}}, "required": [name]}
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def sample(prompt: str, tokens: int) -> dict[str, Any]:
    """A question for the client's model."""
    messages = [{"role": "user", "content": text(prompt)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": tokens}}


ROOTS: dict[str, Any] = {"method": "roots/list", "params": {}}


def required(requests: dict[str, dict[str, Any]], state: str | None = None) -> InputRequiredResult:
    """An answer that asks for input."""
    document: dict[str, Any] = {"resultType": "input_required", "inputRequests": requests}
    return InputRequiredResult.model_validate(document if state is None else {**document, "requestState": state})


def answer(responses: InputResponses | None, key: str, field: str) -> Any:
    """A field of an accepted form; None if it was not given."""
    given = (responses or {}).get(key)
    if isinstance(given, ElicitResult) and given.action == "accept":
        return (given.content or {}).get(field)
    return None


async def one_form(_ctx: Context, params: CallToolRequestParams) -> Outcome:
    """Greets whoever says a name."""
    name = answer(params.input_responses, "user_name", "name")
    if not isinstance(name, str):
        return required({"user_name": ask("What is your name?", "name")})
    return result(text(f"Hello, {name}!"))


async def one_sample(_ctx: Context, params: CallToolRequestParams) -> Outcome:
    """Repeats what the client's model says."""
    given = (params.input_responses or {}).get("capital_question")
    if not isinstance(given, CreateMessageResult):
        return required({"capital_question": sample("What is the capital of France?", 100)})
    return result(text(given.content.text if isinstance(given.content, TextContent) else given.content.type))


async def one_list_of_roots(_ctx: Context, params: CallToolRequestParams) -> Outcome:
    """Repeats the client's roots."""
    given = (params.input_responses or {}).get("client_roots")
    if not isinstance(given, ListRootsResult):
        return required({"client_roots": ROOTS})
    return result(text("Roots: " + ", ".join(str(root.uri) for root in given.roots)))


async def with_state(_ctx: Context, params: CallToolRequestParams) -> Outcome:
    """Needs its state back."""
    if params.request_state is None or answer(params.input_responses, "confirm", "ok") is None:
        return required({"confirm": ask("Please confirm", "ok", "boolean")}, "confirming")
    return result(text(f"state-ok ({params.request_state})"))


async def three_at_once(_ctx: Context, params: CallToolRequestParams) -> Outcome:
    """Asks user, model and client together."""
    requests = {
        "user_name": ask("What is your name?", "name"),
        "greeting": sample("Generate a greeting", 50),
        "client_roots": ROOTS,
    }
    if params.request_state is None or set(requests) - set(params.input_responses or {}):
        return required(requests, "all three")
    return result(text("All three were answered."))


async def two_rounds(_ctx: Context, params: CallToolRequestParams) -> Outcome:
    """Asks for a name, then for a colour."""
    name = answer(params.input_responses, "step1", "name")
    colour = answer(params.input_responses, "step2", "color")
    if params.request_state is None or (params.request_state == "round 1" and not isinstance(name, str)):
        return required({"step1": ask("Step 1: What is your name?", "name")}, "round 1")
    if params.request_state == "round 1":
        return required({"step2": ask("Step 2: What is your favorite color?", "color")}, f"round 2 of {name}")
    return result(text(f"{params.request_state}: {colour}"))


async def by_capability(ctx: Context, _params: CallToolRequestParams) -> Outcome:
    """Asks only what the client says it can answer."""
    declared = ctx.session.client_capabilities
    requests: dict[str, dict[str, Any]] = {}
    if declared is not None and declared.sampling is not None:
        requests["sample"] = sample("Say anything", 20)
    if declared is not None and declared.elicitation is not None:
        requests["form"] = ask("Say anything", "anything")
    return required(requests) if requests else result(text("The client can answer nothing."))


async def streaming_form(ctx: Context, params: CallToolRequestParams) -> Outcome:
    """Reports progress, then asks in its result."""
    await ctx.session.report_progress(1, 2)
    return await one_form(ctx, params)


PROMPT = "test_input_required_result_prompt"


async def prompt(params: GetPromptRequestParams) -> GetPromptResult | InputRequiredResult:
    """A prompt that asks what it is about."""
    context = answer(params.input_responses, "user_context", "context")
    if not isinstance(context, str):
        return required({"user_context": ask("What context should the prompt use?", "context")})
    return GetPromptResult.model_validate({"messages": [{"role": "user", "content": text(f"Context: {context}")}]})


_PREFIX = "test_input_required_result_"
TOOLS: tuple[ServedTool, ...] = (
    ServedTool(_PREFIX + "elicitation", one_form),
    ServedTool(_PREFIX + "sampling", one_sample),
    ServedTool(_PREFIX + "list_roots", one_list_of_roots),
    ServedTool(_PREFIX + "request_state", with_state),
    ServedTool(_PREFIX + "tampered_state", with_state),
    ServedTool(_PREFIX + "multiple_inputs", three_at_once),
    ServedTool(_PREFIX + "multi_round", two_rounds),
    ServedTool(_PREFIX + "capabilities", by_capability),
    ServedTool("test_streaming_elicitation", streaming_form),
)
