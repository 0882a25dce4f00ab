"""DTMA with the real session broker as its child, and the real prober's conversation; the processes are scripted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from localstack.kubernetes import REPOSITORY
from support.dtma.host import FAST, DtmaHost, FakeEngine, eventually, grant_body, ready, stdio_body
from support.dtma.probing import ProbingWorker
from support.dtma.sessions import until
from support.dtma.worker import connected
from toolbox_dtma.engine.api import SessionStream
from toolbox_dtma.gateway.headers import CONNECTION, SESSION
from toolbox_dtma.sessions.process import Child, spawner

pytestmark = pytest.mark.component


class TalkingEngine(FakeEngine):
    """Its processes are MCP servers with one tool."""

    def __init__(self) -> None:
        super().__init__()
        self._talking: set[asyncio.Task[None]] = set()

    async def open_session(self, instance_id: str, session: str) -> SessionStream:
        opened = await super().open_session(instance_id, session)
        task = asyncio.create_task(self._talk(session))
        self._talking.add(task)
        task.add_done_callback(self._talking.discard)
        return opened

    async def _talk(self, session: str) -> None:
        mine = self.processes[session].dup()
        reader, writer = await asyncio.open_connection(sock=mine)
        try:
            while line := await reader.readline():
                asked: dict[str, Any] = json.loads(line)
                if "id" not in asked:
                    continue
                answer = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": _result(asked)}).encode() + b"\n"
                writer.write(struct.pack(">BxxxL", 1, len(answer)) + answer)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()


def _result(asked: dict[str, Any]) -> dict[str, Any]:
    match asked["method"]:
        case "initialize":
            info = {"name": "talking", "version": "1"}
            version = asked["params"]["protocolVersion"]
            return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
        case "tools/list":
            return {"tools": [{"name": "get_time", "inputSchema": {"type": "object"}}]}
        case _:
            return {"content": [{"type": "text", "text": "now"}]}


@pytest_asyncio.fixture
async def children() -> list[Child]:
    """Every broker that was started."""
    return []


@pytest_asyncio.fixture
async def real(open_folder: Path, children: list[Child], monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[DtmaHost]:
    """A DTMA whose brokers are real, with a worker, a ready stdio instance and a connection that may use it."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "dtma"))
    start = spawner(os.getuid(), os.getgid())

    async def spawn(listener: socket.socket, control: socket.socket) -> Child:
        children.append(await start(listener, control))
        return children[-1]

    patient = {"broker_end": 10.0, "broker_patience": 30.0}
    timings = FAST.model_copy(update={**patient, "broker_ask": 1.0})
    host = DtmaHost(open_folder, engine=TalkingEngine(), spawn=spawn, timings=timings)
    await host.start()
    await host.claimed()
    try:
        async with connected(ProbingWorker(), host.socket_path), host.client() as api:
            (await api.put("/v2/instances/i-1", json=stdio_body())).raise_for_status()
            (await api.put("/v2/grants/c-1", json=grant_body())).raise_for_status()
            await ready(api, seconds=40)
            yield host
    finally:
        await host.stop()
    assert not host.engine.processes


@asynccontextmanager
async def agent(host: DtmaHost, connection: str = "c-1") -> AsyncGenerator[httpx.AsyncClient]:
    """What a worker sends for a connection."""
    transport = httpx.AsyncHTTPTransport(uds=str(host.folder / "run" / "broker.sock"))
    headers = {CONNECTION: connection, "Accept": "application/json, text/event-stream"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=headers, timeout=30
    ) as client:
        yield client


async def post(client: httpx.AsyncClient, method: str, session: str | None = None) -> httpx.Response:
    params: dict[str, Any] = {}
    if method == "initialize":
        info = {"name": "test", "version": "1"}
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return await client.post("/instances/i-1/mcp", json=body, headers={SESSION: session} if session else {})


async def test_dtma_and_broker_understand_each_other(real: DtmaHost) -> None:
    async with real.client() as api:
        seen = await ready(api, seconds=40)
    assert seen["probe"]["serverInfo"]["name"] == "talking" and seen["probe"]["toolsTotal"] == 1
    await until(lambda: not real.engine.processes, "the probe's process to go")

    async with agent(real) as client:
        begun = await post(client, "initialize")
        session = begun.headers[SESSION]
        answered = await post(client, "tools/call", session)
        assert answered.json()["result"]["content"][0]["text"] == "now"
        async with agent(real, "another") as stranger:
            assert (await post(stranger, "tools/call", session)).status_code == 404
            assert (await post(stranger, "initialize")).status_code == 404
        deleted = await client.delete("/instances/i-1/mcp", headers={SESSION: session})
        assert deleted.is_success
        await until(lambda: any(grace for _, grace in real.engine.ended), "the process to be let go in peace")


async def test_a_revoked_connection_finds_its_session_gone(real: DtmaHost) -> None:
    async with agent(real) as client:
        session = (await post(client, "initialize")).headers[SESSION]
        async with real.client() as api:
            where = {"namespace": "team-a", "name": "bot-time"}
            (await api.delete("/v2/grants/c-1", params=where)).raise_for_status()
        gone = await eventually(lambda: post(client, "tools/call", session), lambda a: a.status_code == 404, "gone")
        assert "error" in gone.json()
        assert (await post(client, "initialize")).status_code == 404


async def test_a_full_server_says_when_to_come_again(real: DtmaHost) -> None:
    async with agent(real) as client:
        for _ in range(3):
            assert (await post(client, "initialize")).is_success
        full = await post(client, "initialize")
        assert full.status_code == 503 and int(full.headers["retry-after"]) > 0
        assert "All 3 sessions" in full.json()["error"]["message"]


async def test_a_killed_broker_is_replaced_and_answers_on_the_same_socket(
    real: DtmaHost, children: list[Child]
) -> None:
    async with agent(real) as client:
        session = (await post(client, "initialize")).headers[SESSION]
    os.kill(children[0].pid, signal.SIGKILL)
    await until(lambda: len(children) == 2, "another broker", 20)
    assert len(real.engine.processes) <= 1, "at most a spare"
    async with agent(real) as client, asyncio.timeout(30):
        # It waits in the socket's queue until the new one answers.
        assert (await post(client, "tools/call", session)).status_code == 404
        assert (await post(client, "initialize")).is_success


async def test_a_broker_that_hangs_is_replaced_and_its_sessions_end(real: DtmaHost, children: list[Child]) -> None:
    async with agent(real) as client:
        session = (await post(client, "initialize")).headers[SESSION]
        os.kill(children[0].pid, signal.SIGSTOP)
        await until(lambda: len(children) == 2, "another broker", 20)
        async with asyncio.timeout(30):
            assert (await post(client, "tools/call", session)).status_code == 404
            assert (await post(client, "initialize")).is_success


async def test_the_broker_ends_with_dtma(real: DtmaHost, children: list[Child]) -> None:
    await real.stop()
    assert await children[0].wait() == 0
    await real.start()
