"""Servers on stdio, through the gateway and the session broker: to agents and policy they are like any other."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from mcp_types import ElicitResult, TextContent

from support.broker import eras_server
from support.broker.programs import Script, Scripted, Spawned
from support.broker.stdio_instances import TOOLS, stdio_instance
from support.broker.world import Broker, running_broker
from support.gateway.held_calls import hang_up
from support.gateway.mcp_http import INITIALIZE, MODERN, RawSession, request, sdk_client
from support.gateway.threads import eventually
from support.gateway.world import Connection, World, restricted
from toolbox_dtma.link.broker import Closing, Refused, SessionRefused
from toolbox_dtma.link.messages import ProbeResult
from toolbox_dtma.wire import Expose, NameFilter

pytestmark = pytest.mark.component


@pytest.fixture(scope="module")
def broker() -> Generator[Broker]:
    """A broker of the gateway's user."""
    with running_broker(unprivileged=True) as broker:
        yield broker


@pytest.fixture
async def script() -> AsyncGenerator[Script]:
    """A program that the test speaks for."""
    script = Script()
    yield script
    await script.close()


async def opened(http: httpx.AsyncClient, connection: Connection, script: Script) -> tuple[RawSession, Scripted]:
    """A session and its process."""
    process, answer = await asyncio.gather(
        script.initialized(), http.post(connection.url, json=INITIALIZE, headers=connection.headers)
    )
    return RawSession(http, connection, answer.headers["Mcp-Session-Id"]), process


async def test_an_agent_uses_a_server_on_stdio_as_any_other_within_its_policy(gateway: World, broker: Broker) -> None:
    instance = stdio_instance(gateway, broker)
    connection = gateway.connect(instance, expose=restricted("echo", "ask_*", "count"))

    async def elicit(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": "green"})

    async with sdk_client(gateway, connection, "legacy", elicitation_callback=elicit) as client:
        assert client.protocol_version == "2025-11-25"
        assert [tool.name for tool in (await client.list_tools()).tools] == ["echo", "count", "ask_model", "ask_person"]
        steps: list[float] = []

        async def note(progress: float, total: float | None, message: str | None) -> None:
            steps.append(progress)

        for tool, arguments, said in (
            ("echo", {"text": "é"}, "é"),
            ("count", {"steps": 3}, "counted 3"),
            ("ask_person", {}, "the person says green"),
        ):
            (content,) = (await client.call_tool(tool, arguments, progress_callback=note)).content
            assert isinstance(content, TextContent) and content.text == said
        assert steps == [0.0, 1.0, 2.0]
    (name,) = broker.dtma.sessions(instance)
    assert broker.dtma.asked[-1].connection == connection.uid
    assert await broker.dtma.why_closed(name) is Closing.CLIENT


async def test_a_session_is_of_one_connection_and_one_incarnation(
    gateway: World, broker: Broker, script: Script, http: httpx.AsyncClient
) -> None:
    instance = gateway.bridged(broker.dtma.instance(script), broker.path, incarnation="the-first")
    mine, yours = gateway.connect(instance), gateway.connect(instance)
    session, process = await opened(http, mine, script)
    assert session.id.startswith("mt1.") and broker.dtma.asked[-1].route == "the-first"
    stolen = RawSession(http, yours, session.id)
    assert (await stolen.post(request("tools/list"))).status_code == 404
    listing = asyncio.ensure_future(session.post(request("tools/list")))
    assert (await process.heard())["method"] == "tools/list"
    process.say({"jsonrpc": "2.0", "id": 1, "result": {"tools": []}})
    assert (await listing).json()["result"] == {"tools": []}
    gateway.change_instance(instance, incarnation="another")
    assert (await session.post(request("tools/list"))).status_code == 404


async def test_a_session_can_be_left_and_listened_to(
    gateway: World, broker: Broker, script: Script, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.bridged(broker.dtma.instance(script), broker.path))
    session, process = await opened(http, connection, script)
    async with http.stream("GET", connection.url, headers=session.headers) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        lines = stream.aiter_lines()
        process.say({"jsonrpc": "2.0", "id": 1, "method": "roots/list"})
        assert await anext(lines) == 'data: {"jsonrpc": "2.0", "id": 1, "method": "roots/list"}'
        answer = await session.post({"jsonrpc": "2.0", "id": 1, "result": {"roots": []}})
        assert answer.status_code == 202
        assert (await process.heard())["result"] == {"roots": []}
        assert (await http.delete(connection.url, headers=session.headers)).status_code == 204
        assert [line async for line in lines] == [""]
    await process.ended()
    assert (await session.post(request("tools/list"))).status_code == 404


async def test_a_call_runs_on_when_its_client_hangs_up_and_ends_with_its_connection(
    gateway: World, broker: Broker, script: Script, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.bridged(broker.dtma.instance(script), broker.path))
    session, process = await opened(http, connection, script)
    leaves = asyncio.ensure_future(session.post(request("tools/call", {"name": "x"}, 1)))
    await process.heard()
    await hang_up(gateway, leaves)
    running = asyncio.ensure_future(session.post(request("tools/call", {"name": "x"}, 2)))
    # What comes next is the other call, and no cancellation.
    assert (await process.heard())["id"] == 2
    await asyncio.to_thread(gateway.revoke, connection)
    assert (await running).status_code == 401
    assert (await session.post(request("tools/list"))).status_code == 401


async def test_who_gets_no_session_is_told_when_to_come_again(
    gateway: World, broker: Broker, http: httpx.AsyncClient
) -> None:
    refused = SessionRefused(request=0, why=Refused.FULL, message="All 10 sessions are taken", retry_seconds=7)
    connection = gateway.connect(gateway.bridged(broker.dtma.instance(lambda _asked: refused), broker.path))
    answer = await http.post(connection.url, json=INITIALIZE, headers=connection.headers)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")
    assert answer.json()["error"]["data"] == {"retryAfterMs": 7000}


async def test_without_its_broker_a_server_is_not_running_now(
    gateway: World, script: Script, http: httpx.AsyncClient
) -> None:
    with running_broker(unprivileged=True) as broker:
        instance = gateway.bridged(broker.dtma.instance(script), broker.path)
        connection = gateway.connect(instance)
        session, _ = await opened(http, connection, script)
        broker.process.kill()
        broker.process.wait(10)
        for answer in (
            await session.post(request("tools/list")),
            await http.post(connection.url, json=INITIALIZE, headers=connection.headers),
        ):
            assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
        result = await asyncio.to_thread(
            gateway.dtma.probe, 0, f"/instances/{instance}/mcp", address="", bridge=str(broker.path), ticket="t"
        )
        # It is not the server that listens nowhere.
        assert (result.report.ok, result.refused) == (False, False)
        assert result.report.message == "the session broker does not answer"


@pytest.mark.parametrize("expose", [None, Expose(prompts=NameFilter(allow=()))], ids=["passed", "held"])
async def test_calls_whose_stream_has_begun_are_answered_when_the_broker_dies(
    gateway: World, script: Script, http: httpx.AsyncClient, expose: Expose | None
) -> None:
    with running_broker(unprivileged=True) as broker:
        instance = gateway.bridged(broker.dtma.instance(script), broker.path)
        connection = gateway.connect(instance, expose=expose)
        session, process = await opened(http, connection, script)

        async def begin() -> None:
            assert (await process.heard())["method"] == "tools/call"
            process.say({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": 1}})

        begun = asyncio.create_task(begin())
        called = request("tools/call", {"name": "slow"}, "slow")
        async with http.stream("POST", connection.url, json=called, headers=session.headers) as stream:
            await begun
            lines = stream.aiter_lines()
            assert "notifications/message" in await anext(lines)
            broker.process.kill()
            told = [line for line in [line async for line in lines] if line]
        assert told[0] == "event: message" and len(told) == 2
        error = json.loads(told[1].removeprefix("data: "))
        assert (error["jsonrpc"], error["id"]) == ("2.0", "slow")
        assert error["error"] == {"code": -32000, "message": "The server broke off its answer"}


def probe(gateway: World, broker: Broker, instance: str, ticket: str, **more: Any) -> ProbeResult:
    """What a probe with this ticket finds."""
    where: dict[str, Any] = {"address": "", "bridge": str(broker.path), "ticket": ticket, "start": 45.0}
    return gateway.dtma.probe(0, f"/instances/{instance}/mcp", **where | more)


def test_a_probe_holds_its_conversation_in_a_session_of_its_own(gateway: World, broker: Broker) -> None:
    instance = stdio_instance(gateway, broker)
    result = probe(gateway, broker, instance, "ticket-8")
    report = result.report
    assert (report.ok, report.protocol_version, report.tools_total) == (True, MODERN, len(TOOLS)), report.message
    assert report.server_info is not None and report.server_info.name == "on-stdio"
    assert result.surface.tools == TOOLS and len(result.surface.hashes) == len(TOOLS)
    asked = [each for each in broker.dtma.asked if each.instance == instance]
    # The server knows both eras, each with a process of its own.
    assert [(each.connection, each.ticket) for each in asked] == [("", "ticket-8")] * 2
    _, name = broker.dtma.sessions(instance)
    eventually(lambda: broker.dtma.closed.get(name) is Closing.CLIENT, "its session is closed")


@pytest.mark.parametrize(
    ("code", "message", "times"),
    [
        ("raise KeyError('API_KEY')", "The server's process has ended: KeyError: 'API_KEY'", {}),
        ("print('ready')\ninput()\ninput()", "what is no message", {}),
        ("input()\nimport time\ntime.sleep(60)", "it did not answer in time", {"deadline": 2.0, "start": 1.0}),
    ],
    ids=["exits", "logs", "silent"],
)
def test_a_probe_says_what_is_wrong_with_a_server(
    gateway: World, broker: Broker, code: str, message: str, times: dict[str, float]
) -> None:
    instance = broker.dtma.instance(lambda _request: Spawned([sys.executable, "-uc", code]))
    result = probe(gateway, broker, instance, "ticket-9", **times)
    assert not result.report.ok and message in (result.report.message or "")


def test_a_probe_says_why_it_gets_no_session(gateway: World, broker: Broker) -> None:
    refused = SessionRefused(request=0, why=Refused.FAILED, message="The container could not be started")
    result = probe(gateway, broker, broker.dtma.instance(lambda _asked: refused), "ticket-10")
    assert not result.report.ok and "The container could not be started" in (result.report.message or "")


@pytest.mark.parametrize(
    ("kind", "version", "processes"),
    [("modern", MODERN, 2), ("legacy", "2025-11-25", 1), ("exiting", "2025-11-25", 2)],
)
def test_a_probe_finds_a_server_of_either_era_and_starts_no_more_than_it_needs(
    gateway: World, broker: Broker, kind: str, version: str, processes: int
) -> None:
    instance = broker.dtma.instance(lambda _request: Spawned(eras_server.command(kind)))
    for n in range(2):
        report = probe(gateway, broker, instance, f"ticket-{kind}-{n}").report
        assert (report.ok, report.protocol_version, report.tools_total) == (True, version, 1), report.message
        assert report.server_info is not None and report.server_info.name == "odd"
        if n == 0:
            assert len(broker.dtma.sessions(instance)) == processes
    # What was found out is known: no process is started for a question again.
    again = 1 if version != MODERN else 2
    assert len(broker.dtma.sessions(instance)) == processes + again


def test_a_server_that_says_nothing_before_a_handshake_is_ready_all_the_same(gateway: World, broker: Broker) -> None:
    instance = broker.dtma.instance(lambda _request: Spawned(eras_server.command("silent")))
    report = probe(gateway, broker, instance, "ticket-silent").report
    assert (report.ok, report.protocol_version) == (True, "2025-11-25"), report.message


def test_what_a_process_takes_to_start_is_no_part_of_the_conversation(gateway: World, broker: Broker) -> None:
    kinds = {"modern": (MODERN, 2), "legacy": ("2025-11-25", 1)}

    def probed(kind: str) -> tuple[bool, str | None, int]:
        # Longer than the client of the probe, its conversation and the broker wait otherwise; the next one is quick.
        starts = iter([11.0])
        instance = broker.dtma.instance(lambda _request: Spawned(eras_server.command(kind, next(starts, 0.0))))
        report = probe(gateway, broker, instance, f"ticket-slow-{kind}").report
        return report.ok, report.protocol_version, len(broker.dtma.sessions(instance))

    with ThreadPoolExecutor(len(kinds)) as pool:
        found = dict(zip(kinds, pool.map(probed, kinds), strict=True))
    assert found == {kind: (True, version, processes) for kind, (version, processes) in kinds.items()}
