"""Bytes and headers through the gateway, with real clients and servers at both ends."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import warnings
from collections.abc import AsyncGenerator

import httpx
import pytest
from aiohttp import web
from mcp_types import TextContent

from localstack.ports import free_port
from support.gateway.mcp_http import MODERN, call, messages, open_session, request, sdk_client
from support.gateway.mcp_servers import RealServer, ScriptedServer, Seen, json_answer, raw_answer
from support.gateway.tls import HOST
from support.gateway.world import World

pytestmark = pytest.mark.component


@pytest.mark.parametrize(("mode", "revision"), [("auto", MODERN), ("legacy", "2025-11-25")])
async def test_an_sdk_client_calls_a_tool_with_url_and_token_only(
    gateway: World, everyday: RealServer, mode: str, revision: str
) -> None:
    connection = gateway.connect(gateway.instance(everyday.port))
    async with sdk_client(gateway, connection, mode) as client:
        assert client.protocol_version == revision
        assert [tool.name for tool in (await client.list_tools()).tools] == list(everyday.tools)
        result = await client.call_tool("echo", {"text": "grüße"})
        assert isinstance(result.content[0], TextContent) and result.content[0].text == "grüße"


async def test_progress_arrives_while_the_call_runs(gateway: World, everyday: RealServer) -> None:
    connection = gateway.connect(gateway.instance(everyday.port))
    seen: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async with sdk_client(gateway, connection, "legacy") as client:
        await client.call_tool("wait_long", {"seconds": 0.2}, progress_callback=note)
    assert seen == [0, 1, 2, 3]


async def test_a_server_that_answers_in_json_works_the_same(gateway: World, everyday_json: RealServer) -> None:
    connection = gateway.connect(gateway.instance(everyday_json.port))
    async with sdk_client(gateway, connection, "legacy") as client:
        assert not (await client.call_tool("get_time")).is_error


async def test_the_server_sees_the_very_bytes_and_only_the_named_headers(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.instance(script.port, path="/deep/mcp"))
    body = b'{ "jsonrpc":"2.0",\n"id":1.0, "method":"tools/call","params":{"name":"\\u0061","big":1e400} }'
    extra = {
        "Cookie": "a=b",
        "X-Forwarded-For": "1.2.3.4",
        "Mcp-Toolbox-Connection": "somebody-else",
        "Mcp-Param-Region": "eu",
        "Last-Event-ID": "7",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    answer = await http.post(connection.url + "?token=x", content=body, headers={**connection.headers, **extra})
    assert answer.status_code == 202
    (seen,) = script.seen
    assert (seen.method, seen.path, seen.body) == ("POST", "/deep/mcp", body)
    assert {name.lower(): value for name, value in seen.headers} == {
        "host": f"localhost:{script.port}",
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "mcp-param-region": "eu",
        "mcp-toolbox-connection": connection.uid,
        "traceparent": extra["traceparent"],
    }


async def test_cookies_and_public_caching_of_a_server_stay_behind(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    headers = {"Set-Cookie": "a=b", "Cache-Control": "public, max-age=600", "Location": "/x", "X-Powered-By": "y"}
    script.answer = json_answer({"jsonrpc": "2.0", "id": 1, "result": {}}, headers=headers)
    connection = gateway.connect(gateway.instance(script.port))
    answer = await http.post(connection.url, json=request("ping"), headers=connection.headers)
    assert answer.status_code == 200 and answer.json()["result"] == {}
    assert answer.headers["Cache-Control"] == "no-store"
    assert not {"set-cookie", "location", "x-powered-by"} & {name.lower() for name in answer.headers}
    await http.post(connection.url, json=request("ping"), headers=connection.headers)
    assert all(not seen.all("Cookie") for seen in script.seen)


@pytest.mark.parametrize("status", [401, 301, 302, 304, 307, 308])
async def test_a_server_cannot_redirect_or_ask_for_credentials(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, status: int
) -> None:
    headers = {"Location": f"{gateway.base}/", "WWW-Authenticate": "Basic"}
    script.answer = raw_answer(b"", "text/plain", status=status, headers=headers)
    connection = gateway.connect(gateway.instance(script.port))
    answer = await http.post(connection.url, json=request("ping", id="p"), headers=connection.headers)
    assert answer.status_code == 502 and answer.json()["id"] == "p"
    assert "Location" not in answer.headers and "WWW-Authenticate" not in answer.headers
    assert len(script.seen) == 1


async def test_an_encoded_answer_is_not_passed_on(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = raw_answer(gzip.compress(b"{}"), "application/json", headers={"Content-Encoding": "gzip"})
    connection = gateway.connect(gateway.instance(script.port))
    assert (await http.post(connection.url, json=request("ping"), headers=connection.headers)).status_code == 502


@pytest.mark.parametrize("status", [400, 403, 404, 405, 429, 500])
async def test_other_statuses_of_a_server_are_passed_on(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, status: int
) -> None:
    script.answer = raw_answer(b"why", "text/plain", status=status, headers={"Retry-After": "9", "Allow": "POST"})
    connection = gateway.connect(gateway.instance(script.port))
    answer = await http.post(connection.url, json=request("ping"), headers=connection.headers)
    assert (answer.status_code, answer.text) == (status, "why")
    assert (answer.headers["Retry-After"], answer.headers["Allow"]) == ("9", "POST")


async def test_a_large_answer_streams_through_whole(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    chunk = b"x" * 65536

    async def answer(request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for _ in range(160):
            await response.write(chunk)
        return response

    script.answer = answer
    connection = gateway.connect(gateway.instance(script.port))
    got = await http.post(connection.url, json=request("ping"), headers=connection.headers)
    assert got.content == chunk * 160


async def test_a_stream_that_breaks_does_not_look_complete(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    async def answer(request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    script.answer = answer
    connection = gateway.connect(gateway.instance(script.port))
    with pytest.raises(httpx.TransportError):
        await http.post(connection.url, json=request("ping"), headers=connection.headers)


async def test_a_body_over_the_limit_is_413(gateway: World, script: ScriptedServer, http: httpx.AsyncClient) -> None:
    connection = gateway.connect(gateway.instance(script.port))
    body = json.dumps(call("a", {"x": "y" * (4 * 1024 * 1024)})).encode()
    answer = await http.post(connection.url, content=body, headers=connection.headers)
    assert answer.status_code == 413 and script.seen == []

    async def chunks() -> AsyncGenerator[bytes]:
        for at in range(0, len(body), 1 << 16):
            yield body[at : at + (1 << 16)]

    answer = await http.post(connection.url, content=chunks(), headers=connection.headers)
    assert answer.status_code == 413 and script.seen == []


async def test_a_large_body_is_parsed_and_passes(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.instance(script.port))
    body = json.dumps(call("a", {"x": ["y"] * 200_000})).encode()
    answer = await http.post(connection.url, content=body, headers=connection.headers)
    assert answer.status_code == 202 and script.seen[0].body == body


@pytest.mark.parametrize(("address", "state"), [(None, "running"), (HOST, "stopped"), (HOST, "unavailable")])
async def test_a_server_that_is_not_running_is_503_and_not_gone(
    gateway: World, http: httpx.AsyncClient, address: str | None, state: str
) -> None:
    connection = gateway.connect(gateway.instance(free_port(), address=address, state=state))
    answer = await http.post(connection.url, json=request("ping", id="p"), headers=connection.headers)
    assert answer.status_code == 503 and answer.headers["Retry-After"]
    assert answer.json()["id"] == "p" and "not running" in answer.json()["error"]["message"]


async def test_a_server_that_does_not_listen_is_503(gateway: World, http: httpx.AsyncClient) -> None:
    connection = gateway.connect(gateway.instance(free_port()))
    answer = await http.post(connection.url, json=request("ping"), headers=connection.headers)
    assert answer.status_code == 503 and answer.headers["Retry-After"]


async def test_a_session_can_be_closed(gateway: World, everyday: RealServer, http: httpx.AsyncClient) -> None:
    session = await open_session(http, gateway.connect(gateway.instance(everyday.port)))
    assert (await http.delete(session.connection.url, headers=session.headers)).status_code == 200
    assert (await session.post(request("tools/list"))).status_code == 404


async def test_options_and_unknown_methods(gateway: World, script: ScriptedServer, http: httpx.AsyncClient) -> None:
    connection = gateway.connect(gateway.instance(script.port))
    assert (await http.options(connection.url, headers=connection.headers)).status_code == 202
    refused = await http.put(connection.url, headers=connection.headers)
    assert refused.status_code == 405 and refused.headers["Allow"] == "GET, POST, DELETE, OPTIONS"
    assert [seen.method for seen in script.seen] == ["OPTIONS"]


async def test_a_client_that_waits_for_100_continue_is_told_to_go_on(gateway: World, everyday: RealServer) -> None:
    connection = gateway.connect(gateway.instance(everyday.port))
    body = json.dumps(request("server/discover")).encode()
    path = connection.url.removeprefix(gateway.base)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {connection.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Expect: 100-continue\r\nConnection: close\r\n\r\n"
    )

    def talk() -> bytes:
        context = gateway.tls.client_context()
        with (
            socket.create_connection((HOST, gateway.port), 5) as plain,
            context.wrap_socket(plain, server_hostname=HOST) as tls,
        ):
            tls.sendall(head.encode())
            assert tls.recv(1000).startswith(b"HTTP/1.1 100 ")
            tls.sendall(body)
            return tls.recv(1000)

    assert talk().startswith(b"HTTP/1.1 4")  # the SDK server's own answer to a request without _meta


async def test_tls_older_than_1_2_is_refused(gateway: World) -> None:
    def handshake(newest: ssl.TLSVersion) -> str | None:
        context = gateway.tls.client_context()
        # Without this the client's own OpenSSL would refuse to offer the old version.
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the old versions' names are deprecated
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = newest
        with (
            socket.create_connection((HOST, gateway.port), 5) as plain,
            context.wrap_socket(plain, server_hostname=HOST) as tls,
        ):
            return tls.version()

    assert handshake(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    # Either the server's alert or its hanging up; a refusal by the client itself would read otherwise.
    with pytest.raises(ssl.SSLError, match=r"EOF|PROTOCOL_VERSION"):
        handshake(ssl.TLSVersion.TLSv1_1)


async def test_messages_of_a_stream_arrive_in_order(
    gateway: World, everyday: RealServer, http: httpx.AsyncClient
) -> None:
    session = await open_session(http, gateway.connect(gateway.instance(everyday.port)))
    params = {"name": "wait_long", "arguments": {"seconds": 0.2}, "_meta": {"progressToken": "t"}}
    got = messages(await session.post(request("tools/call", params)))
    assert [m["params"]["progress"] for m in got[:-1]] == [0, 1, 2, 3] and got[-1]["id"] == 1


async def test_a_server_cannot_switch_protocols(gateway: World, http: httpx.AsyncClient) -> None:
    ended = asyncio.Event()

    async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        await reader.read()
        writer.close()
        ended.set()

    async with await asyncio.start_server(switch, "127.0.0.1", 0) as server:
        instance = await asyncio.to_thread(gateway.instance, server.sockets[0].getsockname()[1])
        connection = await asyncio.to_thread(gateway.connect, instance)
        answer = await http.post(connection.url, json=request("ping"), headers=connection.headers)
        async with asyncio.timeout(30):
            await ended.wait()
    assert answer.status_code == 502
