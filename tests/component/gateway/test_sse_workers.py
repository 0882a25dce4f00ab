"""Streams of HTTP+SSE and their workers: killed, replaced, stopped; clients that do not read; impostors."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Generator

import httpx
import pytest
from aiohttp import web

from support.gateway.mcp_http import call, request
from support.gateway.mcp_servers import RealServer, ScriptedServer, Seen, scripted_server
from support.gateway.session_server import scripted
from support.gateway.sse_client import peer_address, sse_client, worker_of
from support.gateway.threads import eventually
from support.gateway.world import World, running_world

pytestmark = pytest.mark.component


@pytest.fixture
def server(script: ScriptedServer) -> ScriptedServer:
    script.answer = scripted
    return script


@pytest.fixture(scope="module")
def frail() -> Generator[World]:
    """A gateway whose workers are killed and replaced, with little patience for clients that do not read."""
    with running_world(settings={"drainSeconds": 60.0, "clients": {"stallSeconds": 2.0}}) as world:
        yield world


async def test_a_client_that_does_not_read_is_cut_and_its_server_held_up_meanwhile(frail: World) -> None:
    async def flood(incoming: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.method != "GET":
            return await scripted(incoming, seen)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(incoming)
        event = b'data: {"jsonrpc":"2.0","method":"notifications/x","params":"' + b"x" * 60_000 + b'"}\n\n'
        nonlocal sent
        while True:
            await response.write(event)
            sent += len(event)

    sent = 0
    before = frail.dtma.cuts["stalled"]
    with scripted_server(flood) as script:
        connection = frail.connect(frail.instance(script.port))
        head = f"GET /servers/{connection.instance}/sse HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", frail.port, ssl=frail.tls.client_context(), limit=4096
        )
        writer.write(f"{head}Authorization: Bearer {connection.token}\r\n\r\n".encode())
        await reader.readuntil(b"data: ")
        reference = (await reader.readline()).decode().strip()
        async with httpx.AsyncClient(verify=frail.tls.client_context(), timeout=15, trust_env=False) as http:
            for message in (request("initialize"), {"jsonrpc": "2.0", "method": "notifications/initialized"}):
                answer = await http.post(frail.base + reference, json=message, headers=connection.headers)
                assert answer.status_code == 202
            await asyncio.to_thread(eventually, lambda: frail.dtma.cuts["stalled"] > before, "it is cut", seconds=30)
            await asyncio.to_thread(eventually, lambda: not script.open, "so is its server's side")
            assert sent < 16 * 1024 * 1024
            assert (
                await http.post(frail.base + reference, json=request("ping"), headers=connection.headers)
            ).status_code == 404
        writer.transport.abort()


async def test_a_killed_worker_takes_its_streams_with_it_and_the_others_say_so(
    frail: World, server: ScriptedServer
) -> None:
    connection = frail.connect(frail.instance(server.port))
    async with httpx.AsyncClient(verify=frail.tls.client_context(), timeout=15, trust_env=False) as http:
        async with sse_client(http, connection) as client:
            await client.initialize()
            hellos = len(frail.dtma.hellos)
            os.kill(worker_of(frail, client), signal.SIGKILL)
            await asyncio.wait_for(client.ended.wait(), 10)
            assert client.how == "cut"
            await asyncio.to_thread(eventually, lambda: len(frail.dtma.hellos) > hellos, "it is replaced", seconds=30)
            for _ in range(8):
                async with httpx.AsyncClient(verify=frail.tls.client_context(), timeout=15, trust_env=False) as fresh:
                    assert (await client.post(request("ping"), fresh)).status_code == 404
        async with sse_client(http, connection) as again:
            await again.initialize()
            assert "result" in await again.ask(call("get", id=3))


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user than the gateway's")


@AS_ROOT
async def test_another_user_cannot_speak_as_a_worker(frail: World, server: ScriptedServer) -> None:
    connection = frail.connect(frail.instance(server.port))
    async with httpx.AsyncClient(verify=frail.tls.client_context(), timeout=15, trust_env=False) as http:
        async with sse_client(http, connection) as client:
            head = (
                f"POST {client.reference} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {connection.token}\r\n"
            )
            body = json.dumps(request("initialize"))
            lines = f"Content-Type: application/json\r\nMcp-Toolbox-Source: 192.0.2.66\r\nContent-Length: {len(body)}"
            for hello in frail.dtma.workers:
                with socket.socket(socket.AF_UNIX) as peer:
                    peer.settimeout(10)
                    peer.connect(peer_address(hello.pid))
                    try:
                        peer.sendall(f"{head}{lines}\r\n\r\n{body}".encode())
                        got = await asyncio.to_thread(peer.recv, 1000)
                    except ConnectionError:
                        got = b""
                    assert got == b""
            assert (await client.post(request("initialize", id=2))).status_code == 202
            await client.answer(2)
            assert len(server.seen) == 1, "only what came by the front door"


@AS_ROOT
async def test_nobody_gets_a_token_by_listening_under_the_name_of_a_worker_that_is_gone(
    frail: World, server: ScriptedServer
) -> None:
    connection = frail.connect(frail.instance(server.port))
    async with httpx.AsyncClient(verify=frail.tls.client_context(), timeout=15, trust_env=False) as http:
        async with sse_client(http, connection) as client:
            victim, hellos = worker_of(frail, client), len(frail.dtma.hellos)
            name = peer_address(victim)
            os.kill(victim, signal.SIGKILL)
            await asyncio.wait_for(client.ended.wait(), 10)
            with socket.socket(socket.AF_UNIX) as squatter:

                def bound() -> bool:
                    try:
                        squatter.bind(name)
                    except OSError:
                        # The worker's descriptors are closed one by one.
                        return False
                    return True

                await asyncio.to_thread(eventually, bound, "its name is free")
                squatter.listen()
                squatter.settimeout(0.0)
                await asyncio.to_thread(
                    eventually, lambda: len(frail.dtma.hellos) > hellos, "the worker is replaced", seconds=30
                )
                for _ in range(4):
                    async with httpx.AsyncClient(
                        verify=frail.tls.client_context(), timeout=15, trust_env=False
                    ) as fresh:
                        assert (await client.post(request("ping"), fresh)).status_code == 404
                taken = 0
                while True:
                    try:
                        peer, _ = squatter.accept()
                    except BlockingIOError:
                        break
                    with peer:
                        taken += 1
                        assert peer.recv(1000) == b"", "it was connected to, and told nothing"
                assert taken == 4


async def test_over_a_reload_a_stream_with_a_call_stays_until_it_is_answered_and_takes_messages(
    frail: World, everyday: RealServer
) -> None:
    connection = frail.connect(frail.instance(everyday.port))
    async with httpx.AsyncClient(verify=frail.tls.client_context(), timeout=15, trust_env=False) as http:
        async with sse_client(http, connection) as busy, sse_client(http, connection) as idle:
            await busy.initialize()
            await idle.initialize()
            everyday.begun.clear()
            # Longer than the new workers take to start: the second half of it is in a worker that drains.
            await busy.post(call("wait_long", {"seconds": 60.0}, id=5))
            assert await asyncio.to_thread(everyday.begun.wait, 10)
            olds = {hello.pid for hello in frail.dtma.workers}
            draining = lambda: [line["event"] for line in frail.log_lines()].count("draining")  # noqa: E731
            before = draining()
            assert frail.process is not None
            frail.process.send_signal(signal.SIGHUP)
            await asyncio.wait_for(idle.ended.wait(), 60)
            await asyncio.to_thread(
                eventually, lambda: len({h.pid for h in frail.dtma.workers} - olds) == 2, "new workers", seconds=60
            )
            async with httpx.AsyncClient(verify=frail.tls.client_context(), timeout=15, trust_env=False) as fresh:
                assert (await busy.post(request("ping", id=6), fresh)).status_code == 202
                assert (await busy.answer(6))["result"] == {}
                cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}}
                assert (await busy.post(cancel, fresh)).status_code == 202
            await busy.answer(5)
            await asyncio.wait_for(busy.ended.wait(), 10)
            await asyncio.to_thread(eventually, lambda: draining() == before + 2, "both old ones drain", seconds=60)
    # Not over a connection that is kept open to a worker which drains: a stream that begins there ends at once.
    async with (
        httpx.AsyncClient(verify=frail.tls.client_context(), timeout=15, trust_env=False) as later,
        sse_client(later, connection) as again,
    ):
        await again.initialize("2025-11-25")


async def test_on_a_stop_a_running_call_is_answered_and_then_the_stream_ends(everyday: RealServer) -> None:
    with running_world(workers=2) as world:
        connection = world.connect(world.instance(everyday.port))
        async with httpx.AsyncClient(verify=world.tls.client_context(), timeout=15, trust_env=False) as http:
            async with sse_client(http, connection) as client:
                await client.initialize()
                everyday.begun.clear()
                await client.post(call("wait_long", {"seconds": 1.0}, id=5))
                assert await asyncio.to_thread(everyday.begun.wait, 10)
                assert world.process is not None
                world.process.send_signal(signal.SIGTERM)
                answer = await client.answer(5)
                assert answer["result"]["content"][0]["text"] == "waited"
                await asyncio.wait_for(client.ended.wait(), 10)
                assert await asyncio.to_thread(world.process.wait, 15) == 0
        assert not [line for line in world.log_lines() if line["event"] in {"failed", "worker-killed", "calls-lost"}]
