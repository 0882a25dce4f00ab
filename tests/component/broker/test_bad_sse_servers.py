"""Servers that do not speak the SSE transport, or stop speaking it: the client is told what is wrong, and waits for
nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import httpx
import pytest

from localstack.ports import free_port
from support.broker.client import RawSession, initialize, open_session, unix_http
from support.broker.inside import Inside, inside
from support.broker.sse_script import STREAM, Exchange, SseScript, sse_script
from support.broker.world import Broker
from support.gateway.mcp_http import request
from toolbox_dtma.broker.session import Patience
from toolbox_dtma.broker.sse import MAX_POSTS, Deadlines
from toolbox_dtma.gateway.sse import MAX_EVENT_BYTES
from toolbox_dtma.link.broker import Closing, Upstream

pytestmark = pytest.mark.component

SHORT = Deadlines(endpoint=3.0, turn=0.2, post=2.0, rest=0.2)


@pytest.fixture
async def server() -> AsyncGenerator[SseScript]:
    """A server that the test speaks for."""
    async with sse_script() as script:
        yield script


@pytest.fixture
async def hasty() -> AsyncGenerator[tuple[Inside, httpx.AsyncClient]]:
    """A broker that waits for nothing for long, and a client of it."""
    async with inside(deadlines=SHORT) as broker, unix_http(broker.path) as http:
        yield broker, http


async def opened(http: httpx.AsyncClient, broker: Broker | Inside, server: SseScript) -> tuple[RawSession, Exchange]:
    """A session and its stream, of a new instance."""
    session, stream = await asyncio.gather(open_session(http, broker.dtma.instance(server)), server.initialized())
    return session, stream


def head(status: int, *fields: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", *fields, "", ""]).encode()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (head(404, "Content-Length: 0"), "The server answered GET /sse with HTTP 404"),
        (head(500, "Content-Length: 0"), "The server answered GET /sse with HTTP 500"),
        (
            head(307, "Location: http://evil.example/", "Content-Length: 0"),
            "The server answered GET /sse with HTTP 307 (a redirect, which is not followed)",
        ),
        (
            head(200, "Content-Type: text/html; charset=utf-8", "Content-Length: 0"),
            "The server answered GET /sse with text/html in place of an event stream",
        ),
        (head(200, "Content-Length: 0"), "The server answered GET /sse with no media type in place of an event stream"),
        (
            head(200, "Content-Type: text/event-stream", "Content-Encoding: gzip"),
            "The server answered GET /sse with a content encoding that was not asked for",
        ),
        (STREAM + b"event: endpoint\ndata: http://evil.example/m\n\n", "another origin than its own"),
        (STREAM + b"event: endpoint\ndata: {}\n\n", "its endpoint event holds no URL: {}"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "The server broke off its answer before an endpoint event"),
    ],
    ids=["404", "500", "redirect", "html", "untyped", "encoded", "elsewhere", "no url", "no http"],
)
async def test_a_server_that_does_not_begin_as_it_should_is_refused_with_what_is_wrong(
    http: httpx.AsyncClient, broker: Broker, server: SseScript, said: bytes, message: str
) -> None:
    instance = broker.dtma.instance(server)
    asked = asyncio.ensure_future(initialize(http, instance))
    stream = await server.stream()
    stream.write(said)
    answer = await asked
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (200, -32000) and message in error["message"]
    assert "Mcp-Session-Id" not in answer.headers
    (name,) = broker.dtma.sessions(instance)
    assert await broker.dtma.why_closed(name) is Closing.PROTOCOL
    assert server.posts.empty()


async def test_a_stream_that_ends_before_its_endpoint_is_told(
    http: httpx.AsyncClient, broker: Broker, server: SseScript
) -> None:
    asked = asyncio.ensure_future(initialize(http, broker.dtma.instance(server)))
    stream = await server.stream()
    stream.write(STREAM + b": hello\n\n")
    stream.end()
    message = (await asked).json()["error"]["message"]
    assert message == "The server ended its event stream before an endpoint event"


async def test_a_port_on_which_nothing_listens_is_told_and_dtma_knows(http: httpx.AsyncClient, broker: Broker) -> None:
    nowhere = Upstream(address="127.0.0.1", port=free_port(), path="/sse")
    instance = broker.dtma.instance(lambda _request: nowhere)
    error = (await initialize(http, instance)).json()["error"]
    assert error == {"code": -32000, "message": "Nothing listens on the server's port"}
    (name,) = broker.dtma.sessions(instance)
    assert await broker.dtma.why_closed(name) is Closing.UNREACHABLE


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"", "The server did not answer GET /sse within 3 s"),
        (STREAM, "The server sent no endpoint event within 3 s"),
        (STREAM + b"event: message\ndata: {}\n\n", "The server sent no endpoint event within 3 s"),
        (STREAM + b"event: endpoint\ndata: /messages\n", "The server sent no endpoint event within 3 s"),
    ],
    ids=["silent", "no event", "another event", "half an event"],
)
async def test_a_server_that_never_names_its_endpoint_is_given_up(
    hasty: tuple[Inside, httpx.AsyncClient], server: SseScript, said: bytes, message: str
) -> None:
    broker, http = hasty
    asked = asyncio.ensure_future(initialize(http, broker.dtma.instance(server)))
    stream = await server.stream()
    stream.write(said)
    assert (await asked).json()["error"]["message"] == message
    await stream.ended()


@pytest.mark.parametrize(
    ("written", "message", "why"),
    [
        (b"data: Listening\n\n", "what is no message in its event stream: not JSON at byte 0", Closing.PROTOCOL),
        (b"data: 7\n\n", "a message must be an object", Closing.PROTOCOL),
        (b"data: " + b"x" * MAX_EVENT_BYTES, "what cannot be read in its event stream: an event", Closing.PROTOCOL),
        (b"data: {\ndata: \n" * 40_000, "an event has more than 65536 lines", Closing.PROTOCOL),
        (None, "The server ended its event stream", Closing.ENDED),
    ],
    ids=["log", "number", "giant", "many lines", "end"],
)  # fmt: skip
async def test_a_stream_that_breaks_off_or_holds_no_messages_ends_the_session_and_whoever_waits_is_told(
    http: httpx.AsyncClient, broker: Broker, server: SseScript, written: bytes | None, message: str, why: Closing
) -> None:
    session, stream = await opened(http, broker, server)
    calls = [asyncio.ensure_future(session.call("tools/list", id=id)) for id in (1, 2)]
    for _ in calls:
        await server.heard()
    if written is None:
        stream.end()
    else:
        stream.write(written)
    for call in calls:
        error = (await call)["error"]
        assert error["code"] == -32000 and message in error["message"] and len(error["message"]) < 200
    (name,) = broker.dtma.sessions(session.instance)
    assert await broker.dtma.why_closed(name) is why
    assert (await session.post(request("ping"))).status_code == 404


async def test_an_event_may_have_almost_4_mib(http: httpx.AsyncClient, broker: Broker, server: SseScript) -> None:
    session, stream = await opened(http, broker, server)
    call = asyncio.ensure_future(session.call("tools/list"))
    await server.heard()
    size = MAX_EVENT_BYTES - 1024
    stream.say({"jsonrpc": "2.0", "id": 1, "result": {"x": "y" * size}})
    assert len((await call)["result"]["x"]) == size


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, "The server answered the message's POST with HTTP 500"),
        (401, "The server answered the message's POST with HTTP 401"),
        (302, "The server answered the message's POST with HTTP 302 (a redirect, which is not followed)"),
    ],
)
async def test_a_message_that_the_server_refuses_is_an_error_for_its_call_alone(
    http: httpx.AsyncClient, broker: Broker, server: SseScript, status: int, message: str
) -> None:
    session, stream = await opened(http, broker, server)
    server.accepts = False
    refused = asyncio.ensure_future(session.call("tools/call", id=1))
    (await server.post()).refuse(status, "Location: http://evil.example/\r\n")
    assert (await refused)["error"] == {"code": -32000, "message": message}
    # What nobody waits for is accepted, and its loss told to nobody.
    note = await session.post({"jsonrpc": "2.0", "method": "notifications/initialized"})
    (await server.post()).refuse(status)
    assert note.status_code == 202
    server.accepts = True
    call = asyncio.ensure_future(session.call("tools/list", id=2))
    await server.heard()
    stream.say({"jsonrpc": "2.0", "id": 2, "result": {}})
    assert (await call)["result"] == {}


@pytest.mark.parametrize("status", [404, 410])
async def test_a_session_that_the_server_does_not_know_any_more_is_over(
    http: httpx.AsyncClient, broker: Broker, server: SseScript, status: int
) -> None:
    session, stream = await opened(http, broker, server)
    waiting = asyncio.ensure_future(session.call("tools/list", id=1))
    await server.heard()
    server.accepts = False
    call = asyncio.ensure_future(session.call("tools/list", id=2))
    (await server.post()).refuse(status)
    for each in (waiting, call):
        message = (await each)["error"]["message"]
        assert message == f"The server does not know this session any more (HTTP {status})"
    await stream.ended()
    (name,) = broker.dtma.sessions(session.instance)
    assert await broker.dtma.why_closed(name) is Closing.ENDED
    assert (await session.post(request("ping"))).status_code == 404


async def test_a_handshake_that_the_server_refuses_leaves_no_session(
    http: httpx.AsyncClient, broker: Broker, server: SseScript
) -> None:
    server.accepts = False
    asked = asyncio.ensure_future(initialize(http, broker.dtma.instance(server)))
    stream = await server.stream()
    stream.begin()
    (await server.post()).refuse(400)
    answer = await asked
    assert answer.json()["error"]["message"] == "The server answered the message's POST with HTTP 400"
    assert "Mcp-Session-Id" not in answer.headers
    await stream.ended()


async def test_a_post_that_hangs_stops_no_later_one(server: SseScript) -> None:
    async with inside(deadlines=Deadlines(turn=0.2)) as broker, unix_http(broker.path) as http:
        session, stream = await opened(http, broker, server)
        server.accepts = False
        hanging = asyncio.ensure_future(session.call("tools/call", id=1))
        post = await server.post()
        call = asyncio.ensure_future(session.call("tools/list", id=2))
        (await server.post()).answer()
        stream.say({"jsonrpc": "2.0", "id": 2, "result": {}})
        assert (await call)["result"] == {} and not hanging.done()
        post.answer()
        stream.say({"jsonrpc": "2.0", "id": 1, "result": {}})
        assert (await hanging)["result"] == {}


async def test_a_post_that_hangs_is_given_up(hasty: tuple[Inside, httpx.AsyncClient], server: SseScript) -> None:
    broker, http = hasty
    session, _ = await opened(http, broker, server)
    server.accepts = False
    hanging = asyncio.ensure_future(session.call("tools/call", id=1))
    post = await server.post()
    message = "The server did not answer the message's POST within 2 s"
    assert (await hanging)["error"] == {"code": -32000, "message": message}
    post.answer()


async def test_an_answer_to_a_post_that_never_ends_is_cut_off_and_the_message_counts_as_taken(
    hasty: tuple[Inside, httpx.AsyncClient], server: SseScript
) -> None:
    broker, http = hasty
    session, stream = await opened(http, broker, server)
    server.accepts = False
    call = asyncio.ensure_future(session.call("tools/call", id=1))
    (await server.post()).write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1000)
    listing = asyncio.ensure_future(session.call("tools/list", id=2))
    (await server.post()).answer()
    stream.say(*({"jsonrpc": "2.0", "id": n, "result": {}} for n in (1, 2)))
    assert [(await each)["result"] for each in (call, listing)] == [{}, {}]


async def test_a_server_that_answers_no_post_at_all_gets_no_more_of_them(server: SseScript) -> None:
    async with inside(Patience(input=4.0), deadlines=Deadlines(turn=0.05)) as broker, unix_http(broker.path) as http:
        session, _ = await opened(http, broker, server)
        server.accepts = False
        calls: list[asyncio.Future[httpx.Response]] = []
        posts: list[Exchange] = []
        for n in range(MAX_POSTS):
            calls.append(asyncio.ensure_future(session.post(request("ping", id=n))))
            posts.append(await server.post())
        calls += [asyncio.ensure_future(session.post(request("ping", id=n))) for n in (MAX_POSTS, MAX_POSTS + 1)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = (each.result() for each in done)
        assert refused.status_code == 504
        assert refused.json()["error"]["message"] == "The server takes no messages"
        assert server.posts.empty()
        assert (await session.delete()).status_code == 204
        await asyncio.gather(*calls)
        for post in posts:
            post.answer()
