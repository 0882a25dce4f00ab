"""A stream's own client of /mcp: in which order it sends, and what becomes of every answer."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from support.async_poll import until
from support.gateway.sse_session import SECONDS, STREAM, Client, Mcp, Seen, events, never, ordinary, result
from toolbox_dtma.gateway.http_sse.listening import MAX_FAILURES
from toolbox_dtma.gateway.http_sse.session import (
    BROKE_OFF,
    OVER,
    TOO_LARGE,
)
from toolbox_dtma.gateway.refusal import Refusal


async def test_requests_carry_what_a_client_of_streamable_http_sends(mcp: Mcp, client: Client) -> None:
    answer = await client.initialize()
    assert answer["result"]["protocolVersion"] == "2024-11-05"
    client.send({"jsonrpc": "2.0", "id": 2, "method": "ping"}, Authorization="Bearer u", traceparent="00-a")
    await client.gets()
    first, second = mcp.seen
    assert first.source == second.source == "192.0.2.7"
    assert first.headers["Accept"] == "application/json, text/event-stream"
    assert first.headers["Content-Type"] == "application/json"
    assert not {"Mcp-Session-Id", "MCP-Protocol-Version"} & first.headers.keys()
    assert (second.headers["Mcp-Session-Id"], second.headers["MCP-Protocol-Version"]) == ("s1", "2024-11-05")
    assert (second.headers["Authorization"], second.headers["traceparent"]) == ("Bearer u", "00-a")


async def test_nothing_overtakes_the_answer_that_begins_the_session(mcp: Mcp, client: Client) -> None:
    go = asyncio.Event()

    async def slow(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.name == "initialize":
            await go.wait()
        return await ordinary(request, seen)

    mcp.answer = slow
    client.request("initialize", "init")
    client.notify("notifications/initialized")
    client.request("tools/list", 2)
    await mcp.has("initialize")
    await asyncio.sleep(0.05)
    assert mcp.names == ["initialize"]
    go.set()
    assert [(await client.gets())["id"] for _ in range(2)] == ["init", 2]
    assert mcp.names[:3] == ["initialize", "notifications/initialized", "tools/list"]
    assert {seen.headers["Mcp-Session-Id"] for seen in mcp.seen[1:3]} == {"s1"}


async def test_a_stream_that_stays_open_behind_the_first_answer_holds_up_nothing(mcp: Mcp, client: Client) -> None:
    async def open_ended(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.name != "initialize":
            return await ordinary(request, seen)
        await events(request, f"data: {json.dumps(result(seen))}\n\n")
        return await never()

    mcp.answer = open_ended
    client.request("initialize", "init")
    client.request("ping", 2)
    assert [(await client.gets())["id"] for _ in range(2)] == ["init", 2]
    assert await client.session.outbox.take(0.01) == b""
    assert not client.session.is_busy()


async def test_a_request_waits_until_the_server_has_the_notification_before_it(mcp: Mcp, client: Client) -> None:
    has_it = asyncio.Event()

    async def slow(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.name == "notifications/initialized":
            await asyncio.sleep(0.05)
            has_it.set()
        elif seen.name == "tools/list":
            assert has_it.is_set()
        return await ordinary(request, seen)

    await client.initialize()
    mcp.answer = slow
    client.notify("notifications/initialized")
    client.request("tools/list", 2)
    assert (await client.gets())["result"] == {}


async def test_a_notification_that_nobody_takes_holds_up_others_only_for_a_while(mcp: Mcp, client: Client) -> None:
    async def deaf(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return await never() if seen.name == "notifications/x" else await ordinary(request, seen)

    mcp.answer = deaf
    client.notify("notifications/x")
    client.request("ping", 2)
    assert (await client.gets())["id"] == 2


async def test_a_cancellation_overtakes_the_call_that_it_cancels_and_requests_begin_in_order(
    mcp: Mcp, client: Client
) -> None:
    cancelled = asyncio.Event()

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.name == "notifications/cancelled":
            cancelled.set()
        elif seen.name == "tools/call":
            await cancelled.wait()
        return await ordinary(request, seen)

    mcp.answer = answer
    for number in range(20):
        client.request("tools/call", number)
    client.notify("notifications/cancelled", requestId=3)
    assert {(await client.gets())["id"] for _ in range(20)} == set(range(20))
    assert [seen.message.get("id") for seen in mcp.seen] == [*range(20), None]


async def test_each_event_of_an_answer_is_a_message_and_the_rest_of_it_stays_behind(mcp: Mcp, client: Client) -> None:
    async def streamed(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return await events(
            request,
            "id: 1\ndata:\n\n",
            ": a comment\n\n",
            'event: message\nid: 2\ndata: {"jsonrpc":"2.0",\ndata: "method":"notifications/progress"}\n\n',
            "event: other\ndata: {}\n\n",
            f"data: {json.dumps(result(seen))}\n\n",
        )

    mcp.answer = streamed
    client.request("tools/call")
    assert (await client.gets())["method"] == "notifications/progress"
    assert (await client.gets())["id"] == 1
    assert await client.session.outbox.take(0.01) == b""


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (
            web.json_response({"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "denied"}}),
            -32602,
            "denied",
        ),
        (
            web.json_response({"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": "away"}}, status=503),
            -32000,
            "away",
        ),
        (web.Response(status=500, text="oops"), -32000, "answered 500"),
        (web.Response(status=202), -32000, "answered 202"),
        (web.json_response({"error": "not found"}, status=404), -32000, "answered 404"),
        (web.Response(text="hello"), -32000, "answered 200"),
        (web.Response(text="", headers={"Content-Type": STREAM}), -32000, BROKE_OFF),
        (web.Response(text="x" * (4 * 1024 * 1024 + 1)), -32000, TOO_LARGE),
    ],
    ids=["denied", "away", "no JSON", "accepted", "no JSON-RPC", "text", "an empty stream", "too large"],
)
async def test_whatever_is_no_answer_becomes_an_error_with_the_id_of_the_request(
    mcp: Mcp, client: Client, answer: web.Response, code: int, message: str
) -> None:
    async def bad(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        return answer

    mcp.answer = bad
    client.request("tools/call")
    error = await client.gets()
    assert (error["id"], error["error"]["code"]) == (1, code) and message in error["error"]["message"]
    assert not client.broken


async def test_an_answer_that_breaks_off_becomes_an_error(mcp: Mcp, client: Client) -> None:
    async def broken(request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = 100
        await response.prepare(request)
        await response.write(b'{"jsonrpc"')
        assert request.transport is not None
        request.transport.abort()
        return response

    mcp.answer = broken
    client.request("tools/call")
    assert (await client.gets())["error"]["message"] == BROKE_OFF


async def test_an_answer_whose_stream_ends_early_is_taken_up_where_it_ended(mcp: Mcp, client: Client) -> None:
    async def priming(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.method == "POST":
            return await events(request, "id: e1\nretry: 5\ndata:\n\n")
        if seen.headers["Last-Event-ID"] == "e1":
            return await events(request, 'id: e2\ndata: {"jsonrpc":"2.0","method":"notifications/progress"}\n\n')
        return await events(request, 'id: e3\ndata: {"jsonrpc":"2.0","id":1,"result":{}}\n\n')

    mcp.answer = priming
    client.request("tools/call")
    assert (await client.gets())["method"] == "notifications/progress"
    assert (await client.gets())["id"] == 1
    assert [seen.headers.get("Last-Event-ID") for seen in mcp.seen] == [None, "e1", "e2"]


async def test_an_answer_that_never_comes_is_asked_for_only_so_often(mcp: Mcp, client: Client) -> None:
    async def nothing(request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        return await events(request, "id: e1\nretry: 1\ndata:\n\n")

    mcp.answer = nothing
    client.request("tools/call")
    assert (await client.gets())["error"]["message"] == BROKE_OFF
    assert 2 < len(mcp.seen) < 10


async def test_a_server_is_listened_to_once_the_session_has_begun(mcp: Mcp, client: Client) -> None:
    gets = 0

    async def news(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        nonlocal gets
        if seen.method != "GET":
            return await ordinary(request, seen)
        gets += 1
        if gets == 2:
            return web.Response(status=503)
        if gets == 4:
            await never()
        return await events(request, f'id: e{gets}\ndata: {{"jsonrpc":"2.0","method":"notifications/{gets}"}}\n\n')

    mcp.answer = news
    await client.initialize()
    await asyncio.sleep(0.02)
    assert gets == 0
    client.notify("notifications/initialized")
    assert [(await client.gets())["method"] for _ in range(2)] == ["notifications/1", "notifications/3"]
    await until("a fourth stream", lambda: gets == 4)
    asked = [seen for seen in mcp.seen if seen.method == "GET"]
    assert [seen.headers.get("Last-Event-ID") for seen in asked] == [None, "e1", "e1", "e3"]
    assert {seen.headers["Mcp-Session-Id"] for seen in asked} == {"s1"}
    assert asked[0].headers["Accept"] == STREAM


@pytest.mark.parametrize("status", [405, 404, 400])
async def test_a_server_without_a_stream_is_asked_once(mcp: Mcp, client: Client, status: int) -> None:
    async def none(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response(status=status) if seen.method == "GET" else await ordinary(request, seen)

    mcp.answer = none
    await client.initialize()
    client.notify("notifications/initialized")
    await mcp.has("initialize", "notifications/initialized", "GET")
    client.request("ping", 2)
    assert (await client.gets())["id"] == 2
    client.notify("notifications/initialized")
    await mcp.has("initialize", "notifications/initialized", "GET", "ping", "notifications/initialized")


async def test_a_server_that_cannot_be_listened_to_for_long_ends_the_stream(mcp: Mcp, client: Client) -> None:
    async def away(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response(status=503) if seen.method == "GET" else await ordinary(request, seen)

    mcp.answer = away
    await client.initialize()
    client.notify("notifications/initialized")
    assert await client.gets() is None
    assert len([seen for seen in mcp.seen if seen.method == "GET"]) == MAX_FAILURES + 1


async def test_a_limit_of_the_connection_is_no_failure_of_its_server(mcp: Mcp, client: Client) -> None:
    gets = 0

    async def limited(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        nonlocal gets
        if seen.method != "GET":
            return await ordinary(request, seen)
        gets += 1
        if gets <= 2 * MAX_FAILURES:
            return web.Response(status=429)
        await events(request, 'data: {"jsonrpc":"2.0","method":"notifications/x"}\n\n')
        return await never()

    mcp.answer = limited
    await client.initialize()
    client.notify("notifications/initialized")
    assert (await client.gets())["method"] == "notifications/x"


async def test_a_session_that_the_server_forgot_fails_all_that_waits_and_ends_the_stream(
    mcp: Mcp, client: Client
) -> None:
    async def forgetful(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.name == "tools/call":
            return await never()
        if seen.name == "tools/list":
            return web.json_response({"jsonrpc": "2.0", "id": 2, "error": {"code": -32001, "message": "x"}}, status=404)
        return await ordinary(request, seen)

    await client.initialize()
    mcp.answer = forgetful
    client.request("tools/call", 1)
    client.request("tools/list", 2)
    told = [await client.gets(), await client.gets()]
    assert {message["id"] for message in told} == {1, 2}
    assert {message["error"]["message"] for message in told} == {OVER}
    assert await client.gets() is None
    with pytest.raises(Refusal) as refused:
        client.request("ping", 3)
    assert refused.value.status == 404
    client.session.close()
    await client.session.ended(delete=True)
    assert "DELETE" not in mcp.names, "there is nothing to delete"


async def test_a_request_of_a_revision_without_handshake_is_told_which_there_are(mcp: Mcp, client: Client) -> None:
    client.request("server/discover", "d", _meta={"io.modelcontextprotocol/protocolVersion": "2026-07-28"})
    error = (await client.gets())["error"]
    assert error["code"] == -32000 and "2024-11-05" in error["message"] and "2025-11-25" in error["data"]["supported"]
    assert mcp.seen == []


async def test_a_hang_up_ends_what_runs_and_then_the_server_s_session(mcp: Mcp, client: Client) -> None:
    async def hanging(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return await never() if seen.name == "tools/call" else await ordinary(request, seen)

    await client.initialize()
    mcp.answer = hanging
    client.request("tools/call")
    await mcp.has("initialize", "tools/call")
    assert client.session.is_busy()
    client.session.close()
    await client.session.ended(delete=True)
    assert mcp.hung_up == 1
    assert (mcp.seen[-1].method, mcp.seen[-1].headers["Mcp-Session-Id"]) == ("DELETE", "s1")


async def test_a_server_that_does_not_answer_the_end_of_its_session_is_not_waited_for(mcp: Mcp, client: Client) -> None:
    async def deaf(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        return await never()

    await client.initialize()
    mcp.answer = deaf
    client.session.close()
    async with asyncio.timeout(SECONDS):
        await client.session.ended(delete=True)
    assert mcp.names[-1] == "DELETE"


async def test_a_batch_that_is_refused_whole_has_an_error_for_each_of_its_requests(mcp: Mcp, client: Client) -> None:
    async def refusing(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        error = {"code": -32600, "message": "no batches"}
        return web.json_response({"jsonrpc": "2.0", "id": None, "error": error}, status=400)

    mcp.answer = refusing
    client.send([{"jsonrpc": "2.0", "id": n, "method": "ping"} for n in range(3)])
    told = [await client.gets() for _ in range(3)]
    assert [(m["id"], m["error"]["message"]) for m in told] == [(n, "no batches") for n in range(3)]
