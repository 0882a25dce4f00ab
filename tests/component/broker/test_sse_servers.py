"""Servers of the SSE transport behind the broker: what a session says and hears is the same as of any other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from support.broker.client import RawSession, headers_of, initialize, open_session, path_of, unix_http
from support.broker.inside import Inside, inside
from support.broker.programs import INITIALIZED
from support.broker.sse_script import ACCEPTED, ENDPOINT, STREAM, Exchange, SseScript, sse_script
from support.broker.world import Broker
from support.gateway.mcp_http import INITIALIZE, messages, request
from toolbox_dtma.broker.sse import Deadlines
from toolbox_dtma.link.broker import Closing, Ended

pytestmark = pytest.mark.component


@pytest.fixture
async def server() -> AsyncGenerator[SseScript]:
    """A server that the test speaks for."""
    async with sse_script() as script:
        yield script


async def opened(http: httpx.AsyncClient, broker: Broker | Inside, server: SseScript) -> tuple[RawSession, Exchange]:
    """A session and its stream, of a new instance."""
    session, stream = await asyncio.gather(open_session(http, broker.dtma.instance(server)), server.initialized())
    return session, stream


async def test_the_handshake_is_posted_to_where_the_first_event_says_and_answered_on_the_stream(
    http: httpx.AsyncClient, broker: Broker, server: SseScript
) -> None:
    instance = broker.dtma.instance(server)
    asked = asyncio.ensure_future(http.post(path_of(instance), json=INITIALIZE, headers=headers_of("c-1")))
    stream = await server.stream()
    assert (stream.method, stream.path, stream.headers["accept"]) == ("GET", "/sse", "text/event-stream")
    stream.begin()
    post = await server.post()
    assert (post.path, post.message) == (ENDPOINT, INITIALIZE)
    assert post.headers["content-type"] == "application/json" and "mcp-protocol-version" not in post.headers
    for each in (stream, post):
        # The name that servers answer to, and whose session it is.
        assert each.headers["host"] == f"localhost:{server.upstream.port}"
        assert each.headers["mcp-toolbox-connection"] == "c-1"
        assert each.headers["accept-encoding"] == "identity" and "cookie" not in each.headers
    stream.say({"jsonrpc": "2.0", "id": "init", "result": INITIALIZED})
    answer = await asked
    assert answer.json()["result"] == INITIALIZED and len(answer.headers["Mcp-Session-Id"]) == 32


async def test_a_call_is_sent_as_it_came_with_the_revision_of_its_client(
    http: httpx.AsyncClient, broker: Broker, server: SseScript
) -> None:
    session, stream = await opened(http, broker, server)
    body = b'{ "jsonrpc":"2.0","id":1 ,\r\n "method":"tools/call","params":{"x":1.50,\t"y":"\xc3\xa9"}}'
    headers = {**session.headers, "MCP-Protocol-Version": "2025-06-18"}
    call = asyncio.ensure_future(http.post(path_of(session.instance), content=body, headers=headers))
    post = await server.post()
    assert (post.body, post.headers["mcp-protocol-version"]) == (body, "2025-06-18")
    stream.say({"jsonrpc": "2.0", "id": 1, "result": {}})
    assert (await call).json()["result"] == {}


async def test_progress_requests_and_notifications_go_where_they_belong(
    http: httpx.AsyncClient, broker: Broker, server: SseScript
) -> None:
    session, stream = await opened(http, broker, server)
    params = {"name": "x", "_meta": {"progressToken": "t"}}
    async with session.streaming("GET") as listening, asyncio.TaskGroup() as group:

        async def called() -> list[object]:
            async with session.streaming("POST", request("tools/call", params)) as events:
                return [await events.next() for _ in range(3)]

        call = group.create_task(called())
        assert (await server.heard())["id"] == 1
        progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": "t"}}
        stream.say(progress, {"jsonrpc": "2.0", "id": 7, "method": "sampling/createMessage"})
        assert (await listening.next())["id"] == 7
        assert (await session.post({"jsonrpc": "2.0", "id": 7, "result": {"role": "x"}})).status_code == 202
        assert (await server.heard())["result"] == {"role": "x"}
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "result": {}}
        stream.say(answer)
    assert call.result() == [progress, answer, None]


async def test_events_may_come_in_any_pieces_with_any_line_ends_and_others_among_them(
    http: httpx.AsyncClient, broker: Broker, server: SseScript
) -> None:
    answer = json.dumps({"jsonrpc": "2.0", "id": "init", "result": INITIALIZED}).encode()
    middle = answer.index(b",") + 1
    stream_bytes = (
        b"\xef\xbb\xbf: a comment\r\n\r\nevent: ping\rdata: early\r\rid: 1\nevent:endpoint\ndata:"
        + ENDPOINT.encode()
        + b"\n\nevent: endpoint\ndata: /elsewhere\n\nevent: ping\r\ndata: {}\r\n\r\ndata\n\ndata:  \n\n"
        + b"retry: 5\ndata: " + answer[:middle] + b"\r\ndata:" + answer[middle:] + b"\r\n\r\n"
    )  # fmt: skip
    for size in (1, 7, len(stream_bytes)):
        asked = asyncio.ensure_future(initialize(http, broker.dtma.instance(server)))
        stream = await server.stream()
        stream.write(STREAM)
        for start in range(0, len(stream_bytes), size):
            stream.write(stream_bytes[start : start + size])
            # Each piece is a packet of its own, as far as the loop lets it be.
            await asyncio.sleep(0)
        assert (await server.post()).path == ENDPOINT
        assert (await asked).json()["result"] == INITIALIZED


async def test_messages_of_a_client_reach_the_server_one_after_another(server: SseScript) -> None:
    # Once a POST takes longer than a turn, the broker lets no later one wait for it.
    async with inside(deadlines=Deadlines(turn=30)) as broker, unix_http(broker.path) as http:
        session, stream = await opened(http, broker, server)
        before = server.connections
        notes = [{"jsonrpc": "2.0", "method": "notifications/message", "params": {"n": n}} for n in range(50)]
        for note in notes:
            assert (await session.post(note)).status_code == 202
        assert [(await server.heard())["params"]["n"] for _ in notes] == list(range(50))
        # One connection is enough for messages that wait for one another.
        assert server.connections <= before + 1
        batch = [request("ping", id=n) for n in range(5)]
        headers = {**session.headers, "MCP-Protocol-Version": "2025-03-26"}
        answered = asyncio.ensure_future(http.post(path_of(session.instance), json=batch, headers=headers))
        assert [(await server.heard())["id"] for _ in batch] == list(range(5))
        stream.say(*({"jsonrpc": "2.0", "id": n, "result": {}} for n in range(5)))
        assert (await answered).text.count("data: ") == 5


async def test_a_server_that_answers_a_post_only_after_the_call_can_ask_in_the_middle_of_it(
    http: httpx.AsyncClient, broker: Broker, server: SseScript
) -> None:
    session, stream = await opened(http, broker, server)
    server.accepts = False
    asking = asyncio.ensure_future(session.post(request("tools/call", {"name": "x"}, 1)))
    first = await server.post()
    stream.say({"jsonrpc": "2.0", "id": 7, "method": "elicitation/create"})
    answering = asyncio.ensure_future(session.post({"jsonrpc": "2.0", "id": 7, "result": {}}))
    second = await server.post()
    assert second.message["id"] == 7 and not first.answered.is_set()
    # From now on it is known to do so, and nothing waits for a turn any more.
    began = asyncio.get_running_loop().time()
    calls = [asyncio.ensure_future(session.call("ping", id=n)) for n in range(2, 12)]
    posts = [await server.post() for _ in range(10)]
    assert asyncio.get_running_loop().time() - began < 5
    for post in (first, second, *posts):
        post.answer(ACCEPTED)
    stream.say(*({"jsonrpc": "2.0", "id": n, "result": {}} for n in range(1, 12)))
    assert [each["id"] for each in messages(await asking)] == [7, 1] and (await answering).status_code == 202
    assert {(await call)["id"] for call in calls} == set(range(2, 12))


async def test_a_deleted_session_ends_its_stream(http: httpx.AsyncClient, broker: Broker, server: SseScript) -> None:
    session, stream = await opened(http, broker, server)
    server.accepts = False
    running = asyncio.ensure_future(session.call("tools/list"))
    post = await server.post()
    assert (await session.delete()).status_code == 204
    assert (await running)["error"]["message"] == "The session was ended by its client"
    await stream.ended()
    post.answer()
    (name,) = broker.dtma.sessions(session.instance)
    assert await broker.dtma.why_closed(name) is Closing.CLIENT
    assert (await session.post(request("tools/list"))).status_code == 404


async def test_what_dtma_ends_is_over_at_once(http: httpx.AsyncClient, broker: Broker, server: SseScript) -> None:
    session, stream = await opened(http, broker, server)
    running = asyncio.ensure_future(session.call("tools/list"))
    await server.heard()
    (name,) = broker.dtma.sessions(session.instance)
    broker.dtma.end(name, Ended.REVOKED, "This connection may not use the server any more.")
    assert (await running)["error"]["message"] == "This connection may not use the server any more."
    await stream.ended()
    assert (await session.post(request("tools/list"))).status_code == 404


async def test_what_dtma_ends_before_there_is_an_endpoint_is_over_too(
    http: httpx.AsyncClient, broker: Broker, server: SseScript
) -> None:
    instance = broker.dtma.instance(server)
    asked = asyncio.ensure_future(initialize(http, instance))
    stream = await server.stream()
    (name,) = broker.dtma.sessions(instance)
    broker.dtma.end(name, Ended.REVOKED, "This connection may not use the server any more.")
    answer = await asked
    assert answer.json()["error"]["message"] == "This connection may not use the server any more."
    assert "Mcp-Session-Id" not in answer.headers
    await stream.ended()


async def test_a_session_in_which_nothing_is_said_is_ended(
    http: httpx.AsyncClient, broker: Broker, server: SseScript
) -> None:
    instance = broker.dtma.instance(server, idle_seconds=0.3)
    session, stream = await asyncio.gather(open_session(http, instance), server.initialized())
    (name,) = broker.dtma.sessions(instance)
    # Comments keep a connection open, not a session.
    stream.write(b": ping\n\n")
    assert await broker.dtma.why_closed(name) is Closing.IDLE
    await stream.ended()
    assert (await session.post(request("ping"))).status_code == 404


async def test_a_client_that_does_not_read_holds_its_server_up_and_no_other(
    http: httpx.AsyncClient, broker: Broker, server: SseScript
) -> None:
    slow, writing = await opened(http, broker, server)
    other, stream = await opened(http, broker, server)
    pieces, size = 64, 512 * 1024
    async with slow.streaming("GET") as events:
        for n in range(pieces):
            params = {"n": n, "x": "y" * size}
            writing.say({"jsonrpc": "2.0", "method": "notifications/message", "params": params})
        for id_ in range(100):
            call = asyncio.ensure_future(other.call("ping", id=id_))
            stream.say({"jsonrpc": "2.0", "id": (await server.heard())["id"], "result": {}})
            await call
        assert writing.unsent > pieces * size // 2
        assert [(await events.next())["params"]["n"] for _ in range(pieces)] == list(range(pieces))


async def test_a_probe_is_nobodys_and_is_not_logged(http: httpx.AsyncClient, broker: Broker, server: SseScript) -> None:
    instance = broker.dtma.instance(server)
    probe = {"Mcp-Toolbox-Probe": "ticket-1"}
    answer, stream = await asyncio.gather(
        http.post(path_of(instance), json=INITIALIZE, headers=probe), server.initialized()
    )
    assert answer.json()["result"] == INITIALIZED and "mcp-toolbox-connection" not in stream.headers
    probe["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
    assert (await http.delete(path_of(instance), headers=probe)).status_code == 204
    await stream.ended()
    (name,) = broker.dtma.sessions(instance)
    assert await broker.dtma.why_closed(name) is Closing.CLIENT and name not in broker.log_text()
