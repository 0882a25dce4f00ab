"""What a stream's session may hold, and what becomes of more."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from support.async_poll import until
from support.gateway.sse_session import SECONDS, STREAM, Client, Mcp, Seen, never, result
from toolbox_dtma.gateway.http_sse.outbox import MAX_HELD_BYTES, Overfull
from toolbox_dtma.gateway.http_sse.session import (
    MAX_RUNNING,
    MAX_WAITING,
)
from toolbox_dtma.gateway.refusal import Refusal


async def test_so_many_requests_run_at_once_and_the_next_is_told_so(mcp: Mcp, client: Client) -> None:
    async def hanging(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        return await never()

    mcp.answer = hanging
    for number in range(MAX_RUNNING):
        client.request("tools/call", number)
    await until("all run", lambda: len(mcp.seen) == MAX_RUNNING)
    client.request("tools/call", "more")
    error = await client.gets()
    assert error["id"] == "more" and error["error"]["data"] == {"retryAfterMs": 2000}
    assert client.clients.connections == MAX_RUNNING, "each takes the place of a connection"


async def test_a_request_takes_a_place_of_its_client_s_address(mcp: Mcp, client: Client) -> None:
    taken = [client.clients.enter("192.0.2.7") for _ in range(100)]
    client.request("ping")
    assert "error" in await client.gets()
    assert mcp.seen == []
    client.clients.leave(str(taken.pop()))
    client.request("ping", 2)
    assert "result" in await client.gets()
    for source in taken:
        client.clients.leave(str(source))


async def test_so_many_messages_wait_and_the_next_is_refused(mcp: Mcp, client: Client) -> None:
    async def hanging(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        return await never()

    mcp.answer = hanging
    client.request("initialize", "init")
    await mcp.has("initialize")
    for number in range(MAX_WAITING):
        client.request("ping", number)
    with pytest.raises(Refusal) as refused:
        client.request("ping", "more")
    assert refused.value.status == 429 and "Retry-After" in refused.value.headers


async def test_messages_that_wait_are_bounded_in_bytes(mcp: Mcp, client: Client) -> None:
    async def hanging(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        return await never()

    mcp.answer = hanging
    client.request("initialize", "init")
    size = 3 * 1024 * 1024
    accepted = 0
    with pytest.raises(Refusal) as refused:
        while accepted < MAX_WAITING:
            client.request("ping", accepted, text="x" * size)
            accepted += 1
    assert refused.value.status == 429 and accepted == MAX_HELD_BYTES // size


async def test_answers_that_a_client_does_not_take_end_its_stream_once_they_are_too_much(
    mcp: Mcp, client: Client
) -> None:
    async def large(_request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.json_response(result(seen, text="x" * (3 * 1024 * 1024)))

    mcp.answer = large
    for number in range(8):
        client.request("tools/call", number)
    await until("cut", lambda: client.broken)
    assert isinstance(client.broken[0], Overfull)


async def test_a_stream_of_events_that_nobody_takes_holds_up_the_server(mcp: Mcp, client: Client) -> None:
    sent = 0

    async def flood(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": STREAM})
        await response.prepare(request)
        while True:
            await response.write(b'data: {"method":"notifications/x","text":"' + b"x" * 10_000 + b'"}\n\n')
            sent += 1

    mcp.answer = flood
    client.request("tools/call")
    last = -1
    async with asyncio.timeout(SECONDS):
        while sent == 0 or sent != last:
            last = sent
            await asyncio.sleep(0.05)
    assert sent < 100 and not client.broken
    for _ in range(200):
        await client.gets()
    assert sent > 150
