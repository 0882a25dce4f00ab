"""What a restricted connection can call and see, whatever form it comes in."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import pytest
from aiohttp import web
from mcp.shared.exceptions import MCPError

from support.gateway.mcp_http import MODERN, call, messages, open_session, request, sdk_client
from support.gateway.mcp_servers import RealServer, ScriptedServer, Seen, json_answer, raw_answer
from support.gateway.world import Connection, World, restricted
from toolbox_dtma.wire import Expose, NameFilter

pytestmark = pytest.mark.component

TIME_ONLY = restricted("get_*", deny=("get_secret",))


def limited(gateway: World, server: RealServer) -> Connection:
    """A connection that sees get_time only."""
    return gateway.connect(gateway.instance(server.port, surface=server.tools), expose=TIME_ONLY)


def limited_script(gateway: World, script: ScriptedServer) -> Connection:
    """The same before a scripted server."""
    return gateway.connect(gateway.instance(script.port, surface=("get_time", "get_secret")), expose=TIME_ONLY)


def listed(*names: str, **more: Any) -> dict[str, Any]:
    """A tools/list answer."""
    return {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": n, "inputSchema": {}} for n in names], **more}}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_sdk_client_sees_and_calls_only_what_is_exposed(
    gateway: World, everyday: RealServer, everyday_json: RealServer, mode: str
) -> None:
    for server in (everyday, everyday_json):
        async with sdk_client(gateway, limited(gateway, server), mode) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["get_time"]
            assert not (await client.call_tool("get_time")).is_error
            with pytest.raises(MCPError) as denied:
                await client.call_tool("get_secret")
            assert denied.value.error.code == -32602
            # The session goes on after a denial.
            assert not (await client.call_tool("get_time")).is_error


async def test_the_server_s_own_exposure_counts_as_well(gateway: World, everyday: RealServer) -> None:
    instance = gateway.instance(everyday.port, surface=everyday.tools)
    connection = gateway.connect(instance, server_expose=restricted("echo", "get_time"), expose=restricted("get_*"))
    async with sdk_client(gateway, connection) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["get_time"]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_sdk_client_sees_and_uses_only_the_exposed_prompts_and_resources(
    gateway: World, everyday: RealServer, everyday_json: RealServer, mode: str
) -> None:
    expose = Expose(prompts=NameFilter(deny=("sc*",)), resources=NameFilter(allow=("docs://one", "docs://pages/*")))
    for server in (everyday, everyday_json):
        connection = gateway.connect(gateway.instance(server.port, surface=server.surface), expose=expose)
        async with sdk_client(gateway, connection, mode) as client:
            assert [prompt.name for prompt in (await client.list_prompts()).prompts] == ["greet"]
            assert [str(found.uri) for found in (await client.list_resources()).resources] == ["docs://one"]
            templates = (await client.list_resource_templates()).resource_templates
            assert [template.uri_template for template in templates] == ["docs://pages/{page}"]
            assert len((await client.list_tools()).tools) == len(server.tools)
            assert (await client.get_prompt("greet")).messages
            for uri in ("docs://one", "docs://pages/7"):
                assert (await client.read_resource(uri)).contents
            for attempt in (
                client.get_prompt("scold"),
                client.read_resource("docs://secret"),
                client.read_resource("docs://pages/../secret"),
            ):
                with pytest.raises(MCPError) as denied:
                    await attempt
                assert denied.value.error.code == -32602


async def test_a_denied_call_never_reaches_the_server_and_keeps_the_session(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = limited_script(gateway, script)
    answer = await http.post(connection.url, json=call("get_secret", id="x"), headers=connection.headers)
    assert answer.status_code == 200
    assert (answer.json()["id"], answer.json()["error"]["code"]) == ("x", -32602)
    assert script.seen == []


@pytest.mark.parametrize(
    ("method", "status", "code"), [("tools/call", 400, -32602), ("vendor/x", 404, -32601), ("tasks/list", 404, -32601)]
)
async def test_at_the_new_revision_a_denial_has_its_own_status(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, method: str, status: int, code: int
) -> None:
    connection = limited_script(gateway, script)
    meta = {"io.modelcontextprotocol/protocolVersion": MODERN}
    headers = {**connection.headers, "MCP-Protocol-Version": MODERN, "Mcp-Method": method, "Mcp-Name": "get_secret"}
    params = {"name": "get_secret", "_meta": meta}
    answer = await http.post(connection.url, json=request(method, params), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert script.seen == []


async def test_a_header_that_says_otherwise_is_refused(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = limited_script(gateway, script)
    for header, value, code in (
        ("Mcp-Method", "tools/list", -32020),
        ("Mcp-Name", "get_secret", -32020),
        # Its `_meta`, a parameter of every request at that revision, is not there.
        ("MCP-Protocol-Version", MODERN, -32602),
    ):
        answer = await http.post(connection.url, json=call("get_time"), headers={**connection.headers, header: value})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), header
    assert script.seen == []


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + json.dumps(call("get_secret")).encode(),
        json.dumps(call("get_secret")).encode("utf-16"),
        b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call","params":{"name":"get_secret"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call","params":{"name":"get_secret"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_time","na\\u0000me":"get_secret"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_time"}}{"method":"x"}',
        b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"get_secret"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","result":{}}',
    ],
)
async def test_a_body_that_could_be_read_in_two_ways_is_refused(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, body: bytes
) -> None:
    connection = limited_script(gateway, script)
    answer = await http.post(connection.url, content=body, headers=connection.headers)
    assert answer.status_code == 400 and answer.json()["error"]["code"] in (-32700, -32600)
    assert script.seen == []


async def test_a_batch_is_forwarded_whole_or_not_at_all(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = limited_script(gateway, script)
    denied = [call("get_time", id=1), {"jsonrpc": "2.0", "method": "notifications/x"}, call("get_secret", id=2)]
    answer = await http.post(connection.url, json=denied, headers=connection.headers)
    assert answer.status_code == 200
    assert [(e["id"], e["error"]["code"]) for e in answer.json()] == [(1, -32602), (2, -32602)]
    assert script.seen == []
    allowed = [call("get_time", id=1), call("get_time", id=2)]
    assert (await http.post(connection.url, json=allowed, headers=connection.headers)).status_code == 202
    too_many = [call("get_time", id=n) for n in range(51)]
    assert (await http.post(connection.url, json=too_many, headers=connection.headers)).status_code == 400
    assert len(script.seen) == 1


async def test_lists_in_a_batch_answer_are_filtered(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = json_answer([listed("get_time", "get_secret"), {"jsonrpc": "2.0", "id": 2, "result": {}}])
    connection = limited_script(gateway, script)
    answer = await http.post(connection.url, json=[request("ping")], headers=connection.headers)
    assert answer.json() == [listed("get_time"), {"jsonrpc": "2.0", "id": 2, "result": {}}]


async def test_a_filtered_list_is_private_and_keeps_its_cursor(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = json_answer(listed("get_secret", nextCursor="c", cacheScope="public", ttlMs=90_000))
    connection = limited_script(gateway, script)
    answer = await http.post(connection.url, json=request("tools/list"), headers=connection.headers)
    assert answer.json()["result"] == {"tools": [], "nextCursor": "c", "cacheScope": "private", "ttlMs": 5000}


@pytest.mark.parametrize("method", ["tools/list", "tools/call"])
async def test_a_list_is_filtered_on_any_stream_whoever_asked(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, method: str
) -> None:
    text = json.dumps(listed("get_secret", "get_time"), indent=1)
    event = "id: 9\nevent: message\n" + "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"
    script.answer = raw_answer(f": hello\n\n{event}data: {{}}\n\n".encode(), "text/event-stream")
    connection = limited_script(gateway, script)
    post = await http.post(connection.url, json=call("get_time") | {"method": method}, headers=connection.headers)
    get = await http.get(connection.url, headers=connection.headers)
    for answer in (post, get):
        assert messages(answer) == [listed("get_time"), {}]
        assert "get_secret" not in answer.text and "id: 9" not in answer.text
        assert re.match(r": hello\n\nid: me1\.\S+\nevent: message\n", answer.text)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<tools/>", "text/html"),
        (b'{"result":{"tools":[', "application/json"),
        (b'{"result":{"tools":[]},"result":{}}', "application/json"),
        (json.dumps(listed("get_time")).encode("utf-16"), "application/json"),
        (b'{"result":{"tools":[]}}' + b" " * (4 << 20), "application/json"),
        (json.dumps(listed("get_secret")).encode(), "application/json-seq"),
    ],
)
async def test_a_list_that_cannot_be_read_is_502(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, body: bytes, content_type: str
) -> None:
    script.answer = raw_answer(body, content_type)
    connection = limited_script(gateway, script)
    answer = await http.post(connection.url, json=request("tools/list"), headers=connection.headers)
    assert answer.status_code == 502


@pytest.mark.parametrize(
    "tail",
    [b'data: {"result":{"tools":[\n\n', b'data: {"result":{"tools":[]}}\n', b"data: " + b"x" * ((4 << 20) + 1)],
)
async def test_a_stream_that_cannot_be_read_is_closed(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, tail: bytes
) -> None:
    script.answer = raw_answer(b"data: {}\n\n" + tail, "text/event-stream")
    connection = limited_script(gateway, script)
    got = b""
    with pytest.raises(httpx.TransportError):
        async with http.stream("GET", connection.url, headers=connection.headers) as answer:
            async for chunk in answer.aiter_bytes():
                got += chunk
    assert got in (b"", b"data: {}\n\n")


async def test_an_error_page_keeps_its_status_and_loses_its_words(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = raw_answer(b"Method Not Allowed: get_secret", "text/plain", status=405, headers={"Allow": "POST"})
    connection = limited_script(gateway, script)
    answer = await http.get(connection.url, headers=connection.headers)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert "get_secret" not in answer.text


async def test_unknown_methods_are_for_unrestricted_connections(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    instance = gateway.instance(script.port)
    for connection, code in ((gateway.connect(instance), None), (gateway.connect(instance, expose=TIME_ONLY), -32601)):
        answer = await http.post(connection.url, json=request("vendor/x"), headers=connection.headers)
        assert (answer.status_code, answer.json()["error"]["code"] if code else None) == (200 if code else 202, code)


async def test_narrowing_reaches_a_stream_that_is_open(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def answer(request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        event = f"data: {json.dumps(listed('get_secret', 'get_time'))}\n\n".encode()
        await response.write(event)
        # The script runs in a loop of its own.
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), loop))
        await response.write(event)
        return response

    script.answer = answer
    connection = gateway.connect(gateway.instance(script.port, surface=("get_secret", "get_time")))
    async with http.stream("GET", connection.url, headers=connection.headers) as stream:
        lines = stream.aiter_lines()
        assert "get_secret" in await anext(lines)
        await asyncio.to_thread(gateway.change_grant, connection, expose=TIME_ONLY)
        go_on.set()
        rest = [line async for line in lines if line]
    assert [json.loads(line[5:]) for line in rest] == [listed("get_time")]


async def test_a_real_get_stream_stays_open_and_filtered(
    gateway: World, everyday: RealServer, http: httpx.AsyncClient
) -> None:
    session = await open_session(http, limited(gateway, everyday))
    async with http.stream("GET", session.connection.url, headers=session.headers) as stream:
        assert stream.status_code == 200
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        assert [m["result"]["tools"][0]["name"] for m in messages(await session.post(request("tools/list")))] == [
            "get_time"
        ]
