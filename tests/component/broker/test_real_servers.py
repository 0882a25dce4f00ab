"""An ordinary server on stdio or SSE, reached by an ordinary client of streamable HTTP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp.client.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import CreateMessageResult, ElicitResult, TextContent

from localstack.ports import accepts, free_port
from support.broker import stdio_server
from support.broker.client import sdk_client
from support.broker.programs import Process, Spawned
from support.broker.world import Broker
from support.gateway.mcp_http import MODERN
from support.gateway.threads import eventually
from toolbox_dtma.link.broker import Closing, OpenSession, Upstream

pytestmark = pytest.mark.component

ARGV = [sys.executable, str(Path(stdio_server.__file__))]


def on_stdio(_request: OpenSession) -> Process:
    """A process of the SDK's server."""
    return Spawned(ARGV)


@contextmanager
def on_sse() -> Generator[Upstream]:
    """Where a process of the SDK's server listens."""
    port = free_port()
    quiet = subprocess.DEVNULL
    with subprocess.Popen([*ARGV, str(port)], stdin=quiet, stdout=quiet, stderr=quiet) as process:
        try:
            eventually(lambda: accepts(port), "listening", seconds=30)
            yield Upstream(address="127.0.0.1", port=port, path="/sse")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def upstream() -> Generator[Upstream]:
    """The SDK's server on SSE, for all tests."""
    with on_sse() as upstream:
        yield upstream


@pytest.fixture
def instance(broker: Broker) -> str:
    """An instance of the SDK's server on stdio."""
    return broker.dtma.instance(on_stdio)


@pytest.fixture(params=["stdio", "sse"])
def transport(request: pytest.FixtureRequest) -> str:
    """What a server speaks."""
    return request.param


@pytest.fixture
def either(transport: str, broker: Broker, upstream: Upstream) -> str:
    """An instance of the SDK's server on this transport."""
    return broker.dtma.instance(on_stdio if transport == "stdio" else lambda _request: upstream)


async def said(client: Client, tool: str, arguments: dict[str, Any] | None = None, **more: Any) -> str:
    """What a tool answers."""
    (content,) = (await client.call_tool(tool, arguments or {}, **more)).content
    assert isinstance(content, TextContent)
    return content.text


async def test_a_client_of_every_era_finds_the_server_and_its_tools(
    broker: Broker, transport: str, either: str
) -> None:
    newest = MODERN if transport == "stdio" else "2025-11-25"
    for mode, version in (("auto", newest), ("legacy", "2025-11-25")):
        async with sdk_client(broker.path, either, mode=mode) as client:
            info = client.server_info
            assert info is not None and (info.name, info.version) == ("on-stdio", "3.2.1")
            assert client.protocol_version == version
            assert "echo" in {tool.name for tool in (await client.list_tools()).tools}
            assert await said(client, "echo", {"text": "é \u2028 \n\r\t \U0001f600"}) == "é \u2028 \n\r\t \U0001f600"
    first, *sessions = broker.dtma.sessions(either)
    assert [await broker.dtma.why_closed(name) for name in sessions] == [Closing.CLIENT] * len(sessions)
    # A process that requests share goes on after them; of SSE there is none, but what found that out.
    assert (first in broker.dtma.closed, len(sessions)) == ((False, 1) if newest == MODERN else (True, 2))


async def test_each_session_has_a_process_of_its_own(broker: Broker, instance: str) -> None:
    async with (
        sdk_client(broker.path, instance, "c-1", mode="legacy") as one,
        sdk_client(broker.path, instance, "c-1", mode="legacy") as two,
        sdk_client(broker.path, instance, "c-2", mode="legacy") as three,
    ):
        clients = (one, two, three)
        for client, word in zip(clients, "abc", strict=True):
            assert await said(client, "remember", {"text": word}) == word
        assert len({await said(client, "pid") for client in clients}) == 3
        assert await said(one, "remember", {"text": "d"}) == "a,d"


async def test_progress_reaches_the_call_that_asked_for_it_also_when_several_run(broker: Broker, either: str) -> None:
    async with sdk_client(broker.path, either, mode="legacy") as client:
        seen: dict[int, list[float]] = {}

        async def counted(steps: int) -> str:
            async def note(progress: float, _total: float | None, _message: str | None) -> None:
                seen.setdefault(steps, []).append(progress)

            return await said(client, "count", {"steps": steps}, progress_callback=note)

        sizes = range(3, 9)
        answers = await asyncio.gather(*(counted(steps) for steps in sizes))
        assert answers == [f"counted {steps}" for steps in sizes]
        assert seen == {steps: [float(step) for step in range(steps)] for steps in sizes}


async def test_the_server_asks_the_clients_model_and_person_and_gets_their_answers(broker: Broker, either: str) -> None:
    async def sample(_context: Any, params: Any) -> CreateMessageResult:
        text = f"re: {params.messages[0].content.text}"
        return CreateMessageResult(role="assistant", content=TextContent(type="text", text=text), model="m")

    async def elicit(_context: Any, _params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": "green"})

    options: dict[str, Any] = {"sampling_callback": sample, "elicitation_callback": elicit}
    async with sdk_client(broker.path, either, mode="legacy", **options) as client:
        assert await said(client, "ask_model", {"question": "why"}) == "the model says re: why"
        assert await said(client, "ask_person") == "the person says green"


async def test_a_process_that_dies_in_the_middle_of_calls_ends_all_of_them_with_an_error(
    broker: Broker, instance: str
) -> None:
    async def think(_context: Any, _asked: Any) -> Any:
        await asyncio.Event().wait()

    async with sdk_client(broker.path, instance, mode="legacy", elicitation_callback=think) as client:
        calls = [said(client, "ask_person") for _ in range(3)]
        running = [asyncio.ensure_future(call) for call in (*calls, said(client, "crash"))]
        for call in running:
            with pytest.raises(MCPError, match="The server's process has ended"):
                await call
        with pytest.raises(MCPError):
            await client.list_tools()
    (name,) = broker.dtma.sessions(instance)
    assert await broker.dtma.why_closed(name) is Closing.ENDED


async def test_a_program_that_is_no_server_is_told_to_the_client_at_once(broker: Broker) -> None:
    programs = {
        "raise SystemExit('no licence')": "The server's process has ended",
        "print('Listening on port 80', flush=True); input(); input()": "what is no message",
    }
    for code, message in programs.items():
        instance = broker.dtma.instance(lambda _request, code=code: Spawned([sys.executable, "-c", code]))
        with pytest.raises(BaseExceptionGroup) as raised:
            async with sdk_client(broker.path, instance, mode="legacy"):
                pass
        assert raised.group_contains(MCPError, match=message)


async def test_sessions_of_a_server_on_sse_are_apart_and_end_with_it(broker: Broker) -> None:
    with on_sse() as upstream:
        instance = broker.dtma.instance(lambda _request: upstream)
        async with (
            sdk_client(broker.path, instance, "c-1", mode="legacy") as one,
            sdk_client(broker.path, instance, "c-2", mode="legacy") as two,
        ):
            # They share its process, as its author meant them to.
            assert await said(one, "pid") == await said(two, "pid")
            with pytest.raises(MCPError, match="event stream"):
                await said(one, "crash")
            with pytest.raises(MCPError):
                await two.list_tools()
    names = broker.dtma.sessions(instance)
    assert {await broker.dtma.why_closed(name) for name in names} == {Closing.ENDED}
