"""Promises of the gateway that no other test makes true: what is passed on as it is, and what ends with its owner."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from aiohttp import web

from support.gateway.mcp_http import MODERN, call, request
from support.gateway.mcp_servers import ScriptedServer, Seen, raw_answer, scripted_server
from support.gateway.raw_http import head_of, talk
from support.gateway.threads import eventually
from support.gateway.tls import HOST
from support.gateway.world import World, restricted, running_world

pytestmark = pytest.mark.component

VERSION = "io.modelcontextprotocol/protocolVersion"


async def test_a_server_without_the_client_s_era_answers_its_own_error(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    own = b'{"jsonrpc": "2.0", "id": 1, "error": {"code": -32022, "message": "no", "data": {"supported": []}}}'
    script.answer = raw_answer(own, "application/json", status=400)
    connection = gateway.connect(gateway.instance(script.port))
    body = request("server/discover", {"_meta": {VERSION: MODERN}})
    headers = {**connection.headers, "MCP-Protocol-Version": MODERN, "Mcp-Method": "server/discover"}
    answer = await http.post(connection.url, json=body, headers=headers)
    assert (answer.status_code, answer.content) == (400, own)


async def test_a_revision_and_a_method_that_nobody_knows_yet_pass_untouched(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.instance(script.port))
    body = json.dumps(request("future/thing", {"_meta": {VERSION: "2031-01-01"}, "new": [1]}), indent=1).encode()
    routing = {"MCP-Protocol-Version": "2031-01-01", "Mcp-Method": "future/thing"}
    answer = await http.post(connection.url, content=body, headers={**connection.headers, **routing})
    assert answer.status_code == 202
    (seen,) = script.seen
    assert seen.body == body
    assert {name: seen.all(name) for name in routing} == {name: [value] for name, value in routing.items()}


async def test_the_answer_to_a_restricted_call_streams_through_unparsed(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def answer(incoming: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(incoming)
        await response.write(b'{"tools": [{"begun')
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), loop))
        await response.write(b"\xff and no JSON")
        return response

    script.answer = answer
    connection = gateway.connect(gateway.instance(script.port, surface=("x",)), expose=restricted("x"))
    async with http.stream("POST", connection.url, json=call("x"), headers=connection.headers) as answered:
        chunks = answered.aiter_raw()
        assert await anext(chunks) == b'{"tools": [{"begun'
        go_on.set()
        assert b"".join([chunk async for chunk in chunks]) == b"\xff and no JSON"


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("status", [200, 202, 400, 404, 500])
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_a_session_id_is_signed_on_every_answer_that_carries_one(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, kind: str, status: int, limited: bool
) -> None:
    body = b"{}" if kind == "application/json" else b"data: {}\n\n"
    script.answer = raw_answer(body, kind, status=status, headers={"Mcp-Session-Id": "upstream-own"})
    expose = restricted("x") if limited else None
    connection = gateway.connect(gateway.instance(script.port, surface=("x",)), expose=expose)
    for method, message in (("POST", request("tools/list")), ("POST", call("x")), ("GET", None), ("DELETE", None)):
        answer = await http.request(method, connection.url, json=message, headers=connection.headers)
        assert answer.status_code == status
        assert answer.headers["Mcp-Session-Id"].startswith("mt1.")
        assert "upstream-own" not in f"{answer.headers}{answer.text}"


@pytest.mark.parametrize("method", ["tasks/get", "tasks/result", "tasks/update", "tasks/cancel"])
async def test_a_request_about_a_task_ends_with_its_connection(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, method: str
) -> None:
    async def silent(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    script.answer = silent
    connection = gateway.connect(gateway.instance(script.port))
    message = request(method, {"taskId": "t"})
    asking = asyncio.create_task(http.post(connection.url, json=message, headers=connection.headers))
    await asyncio.to_thread(eventually, lambda: script.open == 1, "the request runs")
    await asyncio.to_thread(gateway.revoke, connection)
    assert (await asyncio.wait_for(asking, 10)).status_code == 401
    await asyncio.to_thread(eventually, lambda: script.open == 0, "the server's side is closed")
    assert (await http.post(connection.url, json=message, headers=connection.headers)).status_code == 401


def test_servers_are_reached_directly_whatever_proxy_the_environment_names(script: ScriptedServer) -> None:
    with scripted_server() as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        env = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"), url)
        with (
            running_world(workers=1, env=env) as world,
            httpx.Client(verify=world.tls.client_context(), trust_env=False, timeout=10) as http,
        ):
            connection = world.connect(world.instance(script.port))
            assert http.post(connection.url, json=request("ping"), headers=connection.headers).status_code == 202
        assert (len(script.seen), proxy.seen) == (1, [])


async def test_a_hang_up_on_a_stream_closes_the_server_s_side(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    async def quiet(incoming: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(incoming)
        await response.write(b": hello\n\n")
        await asyncio.Event().wait()
        return response

    script.answer = quiet
    connection = gateway.connect(gateway.instance(script.port))
    async with http.stream("GET", connection.url, headers=connection.headers) as answer:
        assert await anext(answer.aiter_raw()) == b": hello\n\n"
    await asyncio.to_thread(eventually, lambda: script.open == 0, "the server's side is closed")


def test_a_large_body_that_comes_together_with_its_head_is_no_large_head(
    gateway: World, script: ScriptedServer
) -> None:
    connection = gateway.connect(gateway.instance(script.port))
    body = json.dumps(call("x", {"y": "z" * 900_000})).encode()
    headers = [("Host", HOST), *connection.headers.items(), ("Content-Length", str(len(body)))]
    head = head_of(f"POST /servers/{connection.instance}/mcp HTTP/1.1".encode(), headers)
    assert [talk(gateway, [head + body]).status for _ in range(5)] == [202] * 5
    assert [seen.body for seen in script.seen] == [body] * 5
