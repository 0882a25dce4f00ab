"""Limits of a connection on the size of bodies and answers, and on the time of a call."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator

import httpx
import pytest
from aiohttp import web

from support.gateway.held_calls import META, MODERN_HEADERS, Held, hang_up, post, start
from support.gateway.limited import limited, refusal
from support.gateway.mcp_http import call, request
from support.gateway.mcp_servers import ScriptedServer, Seen
from support.gateway.threads import eventually
from support.gateway.world import World, restricted
from toolbox_dtma.wire import GrantLimits

pytestmark = pytest.mark.component


@pytest.mark.parametrize("modern", [False, True])
async def test_a_body_above_the_limit_is_refused_before_anything_is_forwarded(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, modern: bool
) -> None:
    connection = limited(gateway, script, max_request_bytes=2048, requests_per_minute=1)
    meta, headers, status = (META, MODERN_HEADERS, 413) if modern else ({}, {}, 200)
    large = request("tools/call", {"name": "x", "arguments": {"x": "y" * 2048}, **meta}, id="big")
    error = refusal(await post(http, connection, large, **headers), status=status)
    assert error["id"] == "big" and "at most 2048 bytes" in error["error"]["message"]
    assert "data" not in error["error"] and script.seen == []
    exact = json.dumps({"jsonrpc": "2.0", "method": "notifications/x", "params": {"x": ""}}).encode()
    exact = exact.replace(b'""', b'"' + b"y" * (2048 - len(exact)) + b'"')
    assert len(exact) == 2048
    longer = await http.post(connection.url, content=exact + b" ", headers=connection.headers)
    assert refusal(longer, status=413)["id"] is None and script.seen == []
    fits = await http.post(connection.url, content=exact, headers=connection.headers)
    assert fits.status_code == 202 and script.seen[0].body == exact


async def chunked(
    request: web.BaseRequest, content_type: str, total: int, first: threading.Event
) -> web.StreamResponse:
    """An answer of unknown length, in parts of 1 KiB; all but the first wait until that arrived."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    part = b"data: " + b"x" * (1024 - 8) + b"\n\n" if content_type == "text/event-stream" else b" " * 1024
    await response.write(part)
    assert await asyncio.to_thread(first.wait, 10)
    for _ in range(total // 1024 - 1):
        await response.write(part)
    return response


@pytest.mark.parametrize(("modern", "status"), [(False, 200), (True, 502)])
async def test_an_answer_that_says_it_is_larger_is_refused_whole(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, modern: bool, status: int
) -> None:
    async def answer(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        return web.Response(body=b" " * sizes.pop(), content_type="application/json")

    sizes = [4096, 4097]
    script.answer = answer
    connection = limited(gateway, script, max_response_bytes=4096)
    message = request("tools/call", {"name": "x", **(META if modern else {})})
    headers = MODERN_HEADERS if modern else {}
    error = refusal(await post(http, connection, message, **headers), status=status)
    assert error["id"] == 1 and "larger than the 4096 bytes" in error["error"]["message"]
    assert len((await post(http, connection, message, **headers)).content) == 4096


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
async def test_a_stream_is_cut_when_it_passes_the_limit_and_does_not_look_complete(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, content_type: str, method: str
) -> None:
    sizes = [100 * 1024, 64 * 1024]
    first = threading.Event()

    async def answer(request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        return await chunked(request, content_type, sizes.pop(), first)

    async def read() -> AsyncGenerator[int]:
        first.clear()
        async with http.stream(method, connection.url, json=message, headers=connection.headers) as stream:
            async for part in stream.aiter_raw():
                first.set()
                yield len(part)

    script.answer = answer
    connection = limited(gateway, script, max_response_bytes=64 * 1024)
    message = call("x") if method == "POST" else None
    assert sum([part async for part in read()]) == 64 * 1024
    received = 0
    with pytest.raises(httpx.RemoteProtocolError):
        async for part in read():
            received += part
    assert 1024 <= received <= 64 * 1024
    found = [line for line in gateway.log_lines() if line.get("connection") == connection.uid]
    assert [(line["event"], line["reason"]) for line in found] == [("cut", "response-size-limit")]
    await asyncio.to_thread(eventually, lambda: script.open == 0, "the server's side is closed")


async def test_a_filtered_answer_above_the_limit_is_refused(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    async def answer(request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        return await chunked(request, "application/json", 8192, at_once)

    at_once = threading.Event()
    at_once.set()
    script.answer = answer
    connection = gateway.connect(
        gateway.instance(script.port, surface=("x",)),
        expose=restricted("x"),
        limits=GrantLimits(max_response_bytes=4096),
    )
    assert refusal(await post(http, connection, request("tools/list")))["id"] == 1


@pytest.mark.parametrize(("modern", "status"), [(False, 200), (True, 504)])
async def test_a_call_that_takes_too_long_is_answered_and_closed_at_the_server(
    gateway: World, held: tuple[ScriptedServer, Held], http: httpx.AsyncClient, modern: bool, status: int
) -> None:
    script, _ = held
    connection = limited(gateway, script, call_timeout_seconds=1, concurrent_calls=1)
    begun = asyncio.get_running_loop().time()
    (running,) = await start(http, connection, script, modern=modern)
    error = refusal(await asyncio.wait_for(running, 10), status=status)
    assert asyncio.get_running_loop().time() - begun >= 1
    assert error["id"] == 1 and "data" not in error["error"]
    await asyncio.to_thread(eventually, lambda: script.open == 0, "the server's side is closed")
    (again,) = await start(http, connection, script)
    await hang_up(gateway, again)


async def test_a_stream_that_takes_too_long_is_cut_though_it_goes_on(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    async def drip(request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b"data: {}\n\n")
            await asyncio.sleep(0.05)

    script.answer = drip
    connection = limited(gateway, script, call_timeout_seconds=4)
    with pytest.raises(httpx.TransportError):
        await post(http, connection, call("x"))
    await asyncio.to_thread(eventually, lambda: script.open == 0, "the server's side is closed")
    found = [line for line in gateway.log_lines() if line.get("connection") == connection.uid]
    assert [(line["event"], line["reason"]) for line in found] == [("cut", "call-timeout")]
