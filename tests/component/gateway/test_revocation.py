"""A revocation ends what runs before it is acknowledged."""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import socket
import ssl

import httpx
import pytest
from aiohttp import web

from support.gateway.held_calls import Held, hang_up, start
from support.gateway.mcp_http import call, open_session, request
from support.gateway.mcp_servers import RealServer, ScriptedServer, Seen
from support.gateway.threads import eventually
from support.gateway.world import Connection, World, credential, restricted

pytestmark = pytest.mark.component


async def endless(request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
    """An event every 10 ms, for ever."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await response.write(b"data: {}\n\n")
        await asyncio.sleep(0.01)


async def silent(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
    """Never answers."""
    await asyncio.Event().wait()
    raise AssertionError


class Numbered:
    """An event every 10 ms, for ever, each with its number."""

    def __init__(self) -> None:
        self.sent = 0

    async def answer(self, request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            self.sent += 1
            await response.write(b'data: {"n":%d}\n\n' % self.sent)
            await asyncio.sleep(0.01)


class Reader:
    """Reads a stream in the background and keeps what came."""

    def __init__(self, http: httpx.AsyncClient, method: str, connection: Connection):
        self._stream = http.stream(
            method, connection.url, headers=connection.headers, json=request("ping") if method == "POST" else None
        )
        self.begun = asyncio.Event()
        self.received = b""
        self.pieces = 0
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> str:
        try:
            async with self._stream as answer:
                async for piece in answer.aiter_raw():
                    self.begun.set()
                    self.received += piece
                    self.pieces += 1
                return "ended"
        except httpx.TransportError:
            return "cut"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_running_stream_is_cut_and_nothing_comes_after_the_ack(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, method: str
) -> None:
    events = Numbered()
    script.answer = events.answer
    connection = gateway.connect(gateway.instance(script.port))
    reader = Reader(http, method, connection)
    await asyncio.wait_for(reader.begun.wait(), 10)
    await asyncio.to_thread(gateway.revoke, connection)
    sent = events.sent
    assert await asyncio.wait_for(reader.task, 10) == "cut"
    received = [int(number) for number in re.findall(rb'"n":(\d+)\}', reader.received)]
    assert received == [*range(1, len(received) + 1)] and 0 < len(received) <= sent
    await asyncio.to_thread(eventually, lambda: script.open == 0, "the server's side is closed")
    assert (await http.post(connection.url, json=request("ping"), headers=connection.headers)).status_code == 401


async def test_a_call_that_was_not_answered_yet_is_answered_401(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = silent
    connection = gateway.connect(gateway.instance(script.port))
    asking = asyncio.create_task(http.post(connection.url, json=call("x"), headers=connection.headers))
    await asyncio.to_thread(eventually, lambda: script.open == 1, "the call runs")
    await asyncio.to_thread(gateway.revoke, connection)
    assert (await asyncio.wait_for(asking, 5)).status_code == 401
    await asyncio.to_thread(eventually, lambda: script.open == 0, "the server's side is closed")


async def test_a_revoked_token_is_refused_in_a_running_session(
    gateway: World, everyday: RealServer, http: httpx.AsyncClient
) -> None:
    session = await open_session(http, gateway.connect(gateway.instance(everyday.port)))
    everyday.begun.clear()
    waiting = asyncio.create_task(session.post(call("wait_long", {"seconds": 30.0})))
    assert await asyncio.to_thread(everyday.begun.wait, 10)
    await asyncio.to_thread(gateway.revoke, session.connection)
    with pytest.raises(httpx.TransportError):
        await asyncio.wait_for(waiting, 5)
    assert (await session.post(request("tools/list"))).status_code == 401


async def test_a_dropped_credential_ends_its_streams_and_leaves_the_new_one_s(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = endless
    old = gateway.connect(gateway.instance(script.port))
    new = Connection(old.uid, old.instance, old.url, "mtb_new")
    gateway.change_grant(old, credentials=(credential(old.token), credential(new.token)))
    readers = [Reader(http, "GET", connection) for connection in (old, new)]
    for reader in readers:
        await asyncio.wait_for(reader.begun.wait(), 10)
    await asyncio.to_thread(gateway.change_grant, old, credentials=(credential(new.token),))
    assert await asyncio.wait_for(readers[0].task, 5) == "cut"
    assert not readers[1].task.done()
    await asyncio.to_thread(gateway.revoke, new)
    assert await asyncio.wait_for(readers[1].task, 5) == "cut"


async def test_an_expiry_cuts_a_running_stream_without_any_word_from_dtma(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = endless
    connection = gateway.connect(gateway.instance(script.port))
    reader = Reader(http, "GET", connection)
    await asyncio.wait_for(reader.begun.wait(), 10)
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)
    await asyncio.to_thread(gateway.change_grant, connection, expires_at=ends)
    assert await asyncio.wait_for(reader.task, 5) == "cut"
    assert datetime.datetime.now(datetime.UTC) >= ends


async def test_others_streams_go_on(gateway: World, script: ScriptedServer, http: httpx.AsyncClient) -> None:
    script.answer = endless
    instance = gateway.instance(script.port)
    leaving, staying = (gateway.connect(instance) for _ in range(2))
    reader = Reader(http, "GET", staying)
    await asyncio.wait_for(reader.begun.wait(), 10)
    await asyncio.to_thread(gateway.revoke, leaving)
    before = reader.pieces
    await asyncio.to_thread(eventually, lambda: reader.pieces > before + 1, "more bytes after the ack")
    await asyncio.to_thread(gateway.revoke, staying)
    await asyncio.wait_for(reader.task, 5)


async def test_narrowing_lets_a_running_call_end(gateway: World, everyday: RealServer, http: httpx.AsyncClient) -> None:
    session = await open_session(http, gateway.connect(gateway.instance(everyday.port, surface=everyday.tools)))
    everyday.begun.clear()
    waiting = asyncio.create_task(session.post(call("wait_long", {"seconds": 1.0})))
    assert await asyncio.to_thread(everyday.begun.wait, 10)
    await asyncio.to_thread(gateway.change_grant, session.connection, expose=restricted("get_time"))
    answer = await asyncio.wait_for(waiting, 10)
    assert '"waited"' in answer.text
    denied = await session.post(call("wait_long", {"seconds": 1.0}))
    assert denied.json()["error"]["code"] == -32602


async def test_before_2026_a_hang_up_does_not_cancel_the_call(
    gateway: World, held: tuple[ScriptedServer, Held], http: httpx.AsyncClient
) -> None:
    script, switch = held
    connection = gateway.connect(gateway.instance(script.port))
    await hang_up(gateway, *await start(http, connection, script))
    assert script.open == 1, "it runs on"
    switch.release()
    await asyncio.to_thread(eventually, lambda: script.open == 0, "it ends when the server answers")


async def test_a_call_that_runs_on_is_still_revoked(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = silent
    connection = gateway.connect(gateway.instance(script.port))
    await hang_up(gateway, *await start(http, connection, script))
    await asyncio.to_thread(gateway.revoke, connection)
    await asyncio.to_thread(eventually, lambda: script.open == 0, "the server's side is closed")


async def test_since_2026_a_hang_up_closes_the_server_s_side(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = silent
    connection = gateway.connect(gateway.instance(script.port))
    await hang_up(gateway, *await start(http, connection, script, modern=True))
    await asyncio.to_thread(eventually, lambda: script.open == 0, "the server's side is closed")


async def test_a_filtered_answer_that_a_client_takes_slowly_is_cut(gateway: World, script: ScriptedServer) -> None:
    tools = [{"name": f"get_{n}", "description": "x" * 1000} for n in range(3500)]

    async def long_list(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        return web.json_response({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools}})

    script.answer = long_list
    connection = gateway.connect(gateway.instance(script.port), expose=restricted("get_*"))

    def read_slowly() -> int:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.connect(("127.0.0.1", gateway.port))
        plain.settimeout(10)
        body = json.dumps(request("tools/list")).encode()
        head = {"Host": f"127.0.0.1:{gateway.port}", "Content-Length": str(len(body)), **connection.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        with gateway.tls.client_context().wrap_socket(plain, server_hostname="127.0.0.1") as client:
            client.sendall(f"POST /servers/{connection.instance}/mcp HTTP/1.1\r\n{lines}\r\n".encode() + body)
            received = len(client.recv(100))
            gateway.revoke(connection)
            try:
                while more := len(client.recv(65536)):
                    received += more
            except (ConnectionError, ssl.SSLError):
                pass
            return received

    # What the kernel's buffers hold is on its way; the rest of 3.5 MB is not.
    assert await asyncio.to_thread(read_slowly) < 3_000_000
