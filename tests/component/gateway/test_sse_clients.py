"""Agents that only speak HTTP+SSE, the transport of revision 2024-11-05: to servers and policy like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import httpx
import pytest
from aiohttp import web
from mcp.shared.exceptions import MCPError
from mcp_types import CreateMessageResult, ElicitResult, TextContent

from support.broker.stdio_instances import stdio_instance
from support.broker.world import Broker, running_broker
from support.gateway.mcp_http import call, request
from support.gateway.mcp_servers import RealServer, ScriptedServer, Seen
from support.gateway.session_server import said, scripted
from support.gateway.sse_client import sdk_sse_client, sse_client, sse_url, worker_of
from support.gateway.threads import eventually
from support.gateway.world import World, restricted
from support.tcp import is_connected
from toolbox_dtma.wire import GrantLimits

pytestmark = pytest.mark.component

SHOWN = restricted("get_time", "echo", "wait_long")


def text_of(result: Any) -> str:
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


@pytest.fixture
def server(script: ScriptedServer) -> ScriptedServer:
    script.answer = scripted
    return script


async def seen_by(script: ScriptedServer, *names: str) -> None:
    await asyncio.to_thread(eventually, lambda: said(script) == list(names), f"{names}, and there was {said(script)}")


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_sdk_s_client_uses_a_server_within_its_policy(
    gateway: World, everyday: RealServer, mode: str
) -> None:
    connection = gateway.connect(gateway.instance(everyday.port, surface=everyday.surface), expose=SHOWN)
    steps: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    context = gateway.tls.client_context()
    async with sdk_sse_client(sse_url(connection), connection.token, context, mode) as client:
        # What it probes for first is of a revision that has no such transport, and it is told so.
        assert client.protocol_version == "2025-11-25"
        assert [tool.name for tool in (await client.list_tools()).tools] == ["get_time", "echo", "wait_long"]
        assert text_of(await client.call_tool("echo", {"text": "é\n\u2028"})) == "é\n\u2028"
        assert text_of(await client.call_tool("wait_long", {"seconds": 0.2}, progress_callback=note)) == "waited"
        assert steps == [0, 1, 2, 3]
        with pytest.raises(MCPError) as refused:
            await client.call_tool("get_secret")
        assert refused.value.error.code == -32602
    lines = [line for line in gateway.log_lines() if line.get("connection") == connection.uid]
    assert [(line["reason"], line["source"]) for line in lines] == [("denied", "127.0.0.1")]


@pytest.fixture(scope="module")
def broker() -> Generator[Broker]:
    with running_broker(unprivileged=True) as broker:
        yield broker


async def test_a_server_on_stdio_asks_its_client_in_the_middle_of_a_call(gateway: World, broker: Broker) -> None:
    connection = gateway.connect(stdio_instance(gateway, broker))

    async def elicit(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": "green"})

    async def sample(context: Any, params: Any) -> CreateMessageResult:
        return CreateMessageResult(role="assistant", content=TextContent(type="text", text="42"), model="m")

    async with sdk_sse_client(
        sse_url(connection),
        connection.token,
        gateway.tls.client_context(),
        elicitation_callback=elicit,
        sampling_callback=sample,
    ) as client:
        assert text_of(await client.call_tool("ask_person")) == "the person says green"
        assert text_of(await client.call_tool("ask_model", {"question": "?"})) == "the model says 42"
        assert text_of(await client.call_tool("remember", {"text": "a"})) == "a"
        assert text_of(await client.call_tool("remember", {"text": "b"})) == "a,b", "one session, one process"


async def test_the_endpoint_is_a_relative_reference_and_its_server_hears_of_nothing_yet(
    gateway: World, http: httpx.AsyncClient, server: ScriptedServer
) -> None:
    connection = gateway.connect(gateway.instance(server.port))
    async with sse_client(http, connection) as client:
        assert client.reference.startswith(f"/servers/{connection.instance}/messages?sessionId=mt1.")
        assert server.seen == []
        result = await client.initialize()
        assert result["protocolVersion"] == "2024-11-05"
        await seen_by(server, "initialize", "notifications/initialized", "GET")
        assert (await client.ask(call("get", id=7)))["result"] == {"content": []}
        first, second, third, last = server.seen
        assert not first.all("Mcp-Session-Id") and not first.all("MCP-Protocol-Version")
        for later in (second, third, last):
            assert (later.all("Mcp-Session-Id"), later.all("MCP-Protocol-Version")) == (["up"], ["2024-11-05"])
            assert later.all("Mcp-Toolbox-Connection") == [connection.uid]
            assert not later.all("Authorization") and not later.all("Mcp-Toolbox-Source")
        await client.close()
        await asyncio.to_thread(eventually, lambda: server.seen[-1].method == "DELETE", "the session is ended")
        assert server.seen[-1].all("Mcp-Session-Id") == ["up"]
        assert (await client.post(request("ping"))).status_code == 404


async def test_what_a_server_says_by_itself_comes_on_the_stream_and_goes_on_after_a_break(
    gateway: World, http: httpx.AsyncClient, server: ScriptedServer
) -> None:
    async def news(incoming: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.method != "GET":
            return await scripted(incoming, seen)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(incoming)
        number = len([each for each in server.seen if each.method == "GET"])
        await response.write(f'id: n{number}\ndata: {{"jsonrpc":"2.0","method":"notifications/{number}"}}\n\n'.encode())
        if number > 1:
            await asyncio.Event().wait()
        return response

    server.answer = news
    connection = gateway.connect(gateway.instance(server.port), expose=restricted("get"))
    async with sse_client(http, connection) as client:
        await client.initialize()
        await client.until(lambda: {"notifications/1", "notifications/2"} <= {m.get("method") for m in client.messages})
        asked = [seen for seen in server.seen if seen.method == "GET"]
        # The server is given its own id: between it and the client it is signed, and not shown at all.
        assert [seen.all("Last-Event-ID") for seen in asked] == [[], ["n1"]]


async def test_a_cancellation_reaches_the_server_while_the_call_runs(
    gateway: World, http: httpx.AsyncClient, server: ScriptedServer
) -> None:
    async with sse_client(http, gateway.connect(gateway.instance(server.port))) as client:
        await client.initialize()
        assert (await client.post(call("x", id=5))).status_code == 202
        await asyncio.to_thread(eventually, lambda: server.open == 1, "the call runs")
        await client.post({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}})
        await asyncio.to_thread(eventually, lambda: "notifications/cancelled" in said(server), "it is told")
        await asyncio.to_thread(eventually, lambda: server.open == 1, "the call runs still")


async def test_denied_and_limited_requests_are_errors_on_the_stream_and_calls_are_recorded_as_they_ended(
    gateway: World, http: httpx.AsyncClient, server: ScriptedServer
) -> None:
    # With the two requests that begin a session and the GET stream, one call is left.
    connection = gateway.connect(
        gateway.instance(server.port, surface=("get", "x")),
        expose=restricted("get"),
        limits=GrantLimits(requests_per_minute=4),
    )
    async with sse_client(http, connection) as client:
        await client.initialize()
        await seen_by(server, "initialize", "notifications/initialized", "GET")
        assert (await client.ask(call("x", id=1)))["error"]["code"] == -32602
        assert (await client.ask(call("get", id=2)))["result"] == {"content": []}
        limited = (await client.ask(call("get", id=3)))["error"]
        assert limited["code"] == -32000 and limited["data"]["retryAfterMs"] > 0
        assert (await client.ask(request("tasks/list", id=4)))["error"]["code"] == -32601
    records = gateway.dtma.calls_of
    await asyncio.to_thread(eventually, lambda: len(records(connection.uid)) == 3, "three records")
    found = {(record.tool, record.outcome.value, record.protocol_version) for record in records(connection.uid)}
    assert found == {("x", "denied", "2024-11-05"), ("get", "ok", "2024-11-05"), ("get", "limited", "2024-11-05")}


async def test_a_revocation_ends_the_stream_and_what_runs_behind_it(
    gateway: World, http: httpx.AsyncClient, server: ScriptedServer
) -> None:
    connection = gateway.connect(gateway.instance(server.port))
    async with sse_client(http, connection) as client:
        await client.initialize()
        await client.post(call("x", id=5))
        await asyncio.to_thread(eventually, lambda: server.open == 1, "the call runs")
        await asyncio.to_thread(gateway.revoke, connection)
        await asyncio.wait_for(client.ended.wait(), 10)
        assert client.how == "cut"
        await asyncio.to_thread(eventually, lambda: server.open == 0, "the server's side is closed")
        assert (await client.post(request("ping"))).status_code == 401
    refused = [line for line in gateway.log_lines() if line.get("event") == "refused"]
    assert len([line for line in refused if line["reason"] == "unauthorized"]) >= 1
    assert not [line for line in gateway.log_lines() if line.get("event") == "failed"]


async def test_a_message_finds_its_stream_from_any_worker(
    gateway: World, http: httpx.AsyncClient, server: ScriptedServer
) -> None:
    async with sse_client(http, gateway.connect(gateway.instance(server.port))) as client:
        await client.initialize()
        own = worker_of(gateway, client)
        elsewhere = 0
        for number in range(40):
            async with httpx.AsyncClient(verify=gateway.tls.client_context(), timeout=15, trust_env=False) as other:
                answer = await client.post(call("get", {"large": "x" * 200_000}, id=number), other)
                network: Any = answer.extensions["network_stream"]
                elsewhere += not is_connected(own, network.get_extra_info("client_addr")[1])
            assert answer.status_code == 202
            assert (await client.answer(number))["result"] == {"content": []}
            if elsewhere >= 3:
                break
        assert elsewhere >= 3, "the kernel gave them all to one worker"


async def test_a_stream_belongs_to_its_connection_alone_from_any_worker(
    gateway: World, http: httpx.AsyncClient, server: ScriptedServer
) -> None:
    instance = gateway.instance(server.port)
    connection, other = gateway.connect(instance), gateway.connect(instance)
    async with sse_client(http, connection) as client:
        await client.initialize()
        await seen_by(server, "initialize", "notifications/initialized", "GET")
        for _ in range(4):
            async with httpx.AsyncClient(verify=gateway.tls.client_context(), timeout=15, trust_env=False) as fresh:
                foreign = await client.post(call("get"), fresh, Authorization=f"Bearer {other.token}")
                nobody = await client.post(call("get"), fresh, Authorization="Bearer nobody")
            assert (foreign.status_code, foreign.json()["error"]["code"]) == (404, -32001)
            assert (nobody.status_code, "error" in nobody.json()) == (401, True)
        assert len(server.seen) == 3


async def test_no_client_can_say_which_address_it_has(
    gateway: World, http: httpx.AsyncClient, server: ScriptedServer
) -> None:
    connection = gateway.connect(gateway.instance(server.port, surface=("get",)), expose=restricted("get"))
    async with sse_client(http, connection) as client:
        for _ in range(8):
            async with httpx.AsyncClient(verify=gateway.tls.client_context(), timeout=15, trust_env=False) as fresh:
                await client.post(call("x"), fresh, **{"Mcp-Toolbox-Source": "192.0.2.66"})
        await client.until(lambda: len(client.messages) == 8)
    lines = [line for line in gateway.log_lines() if line.get("connection") == connection.uid]
    assert len(lines) == 8 and {line["source"] for line in lines} == {"127.0.0.1"}


async def test_a_server_that_went_away_is_an_error_on_the_stream_and_503_to_who_comes(
    gateway: World, http: httpx.AsyncClient, server: ScriptedServer
) -> None:
    connection = gateway.connect(gateway.instance(server.port))
    async with sse_client(http, connection) as client:
        await client.initialize()
        await asyncio.to_thread(gateway.change_instance, connection.instance, state="stopped", address=None)
        error = (await client.ask(call("get", id=9)))["error"]
        assert error["code"] == -32000 and "not running" in error["message"]
        answer = await http.get(sse_url(connection), headers=connection.headers)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")


async def test_a_server_that_was_replaced_ends_the_stream_so_that_its_client_begins_anew(
    gateway: World, http: httpx.AsyncClient, server: ScriptedServer
) -> None:
    connection = gateway.connect(gateway.instance(server.port))
    async with sse_client(http, connection) as client:
        await client.initialize()
        await client.post(call("x", id=1))
        await asyncio.to_thread(eventually, lambda: server.open == 1, "the call runs")
        await asyncio.to_thread(gateway.change_instance, connection.instance, incarnation="the-next")
        await client.post(call("get", id=2))
        await asyncio.wait_for(client.ended.wait(), 10)
        assert client.how == "ended"
        errors = {message["id"]: message["error"]["message"] for message in client.messages if "error" in message}
        assert errors.keys() == {1, 2} and "has ended" in errors[1]
        assert (await client.post(request("ping"))).status_code == 404
    async with sse_client(http, connection) as again:
        await again.initialize()
        assert "result" in await again.ask(call("get", id=3))


@pytest.mark.parametrize(
    ("method", "door", "status", "allow"),
    [
        ("OPTIONS", "sse", 204, "GET, OPTIONS"),
        ("OPTIONS", "messages", 204, "POST, OPTIONS"),
        ("POST", "sse", 405, "GET, OPTIONS"),
        ("DELETE", "sse", 405, "GET, OPTIONS"),
        ("GET", "messages", 405, "POST, OPTIONS"),
    ],
)
async def test_each_door_says_what_it_is_for(
    gateway: World, http: httpx.AsyncClient, server: ScriptedServer, method: str, door: str, status: int, allow: str
) -> None:
    connection = gateway.connect(gateway.instance(server.port))
    url = connection.url.removesuffix("mcp") + door
    answer = await http.request(method, url, headers=connection.headers)
    assert (answer.status_code, answer.headers["Allow"]) == (status, allow)
    assert server.seen == []


async def test_a_message_that_cannot_be_read_is_refused_where_it_was_sent(
    gateway: World, http: httpx.AsyncClient, server: ScriptedServer
) -> None:
    async with sse_client(http, gateway.connect(gateway.instance(server.port))) as client:
        url = str(httpx.URL(sse_url(client.connection)).join(client.reference))
        for content, kind in (
            (b"{", "application/json"),
            (b"{}", "text/plain"),
            (b'{"id":1,"ID":2}', "application/json"),
        ):
            headers = {**client.connection.headers, "Content-Type": kind}
            assert (await http.post(url, content=content, headers=headers)).status_code == 400
        assert server.seen == [] and client.messages == []
