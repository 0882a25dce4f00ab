"""The broker as a process: who may speak to it, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from support.broker.client import headers_of, open_session, path_of, unix_http
from support.broker.programs import Script
from support.broker.world import Broker, running_broker
from support.gateway.mcp_http import INITIALIZE, request
from support.gateway.threads import eventually
from support.gateway.world import UNPRIVILEGED
from toolbox_dtma.link.broker import Closing

pytestmark = pytest.mark.component

SPEAK = """
import os, socket, sys
os.setresuid(*[int(sys.argv[2])] * 3)
with socket.socket(socket.AF_UNIX) as speaking:
    speaking.connect(sys.argv[1])
    try:
        speaking.sendall(b"GET /instances/x/mcp HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        answer = speaking.recv(64)
    except OSError:
        answer = b""
print(answer[:12].decode())
"""


def spoken(broker: Broker, uid: int) -> str:
    """What a process of a user hears from it."""
    argv = [sys.executable, "-c", SPEAK, str(broker.path), str(uid)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_only_processes_of_its_own_user_are_heard() -> None:
    with running_broker(unprivileged=True) as broker:
        assert spoken(broker, UNPRIVILEGED) == "HTTP/1.1 400"
        assert spoken(broker, UNPRIVILEGED - 1) == ""
        # Nor is root: the gateway is the only one with something to say here.
        assert spoken(broker, 0) == ""


@pytest.mark.parametrize("how", ["SIGTERM", "DTMA ends"])
async def test_when_it_stops_whoever_waits_is_told(script: Script, how: str) -> None:
    with running_broker() as broker:
        async with unix_http(broker.path) as http:
            instance = broker.dtma.instance(script)
            session, process = await asyncio.gather(open_session(http, instance), script.initialized())
            call = asyncio.ensure_future(session.call("tools/list"))
            await process.heard()
            if how == "SIGTERM":
                broker.process.send_signal(signal.SIGTERM)
            else:
                broker.dtma.hang_up()
            assert (await call)["error"]["message"] == "The session broker is stopping"
            await process.ended()
        assert await asyncio.to_thread(broker.process.wait, 10) == 0
        if how == "SIGTERM":
            (name,) = broker.dtma.sessions(instance)
            assert await broker.dtma.why_closed(name) is Closing.CLIENT


def test_many_connections_wait_while_it_has_no_time_for_them() -> None:
    with running_broker() as broker, ExitStack() as stack:
        broker.process.send_signal(signal.SIGSTOP)
        connections = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(600)]
        try:
            for connection in connections:
                connection.setblocking(False)
                # Where the queue is full this fails at once.
                connection.connect(str(broker.path))
        finally:
            broker.process.send_signal(signal.SIGCONT)
        for connection in connections:
            connection.settimeout(20)
            connection.sendall(b"GET /instances/x/mcp HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(64).startswith(b"HTTP/1.1 400")


def test_asked_whether_it_is_there_it_says_so() -> None:
    with running_broker() as broker:
        for number in (1, 2, 3):
            broker.dtma.ping()
            eventually(lambda number=number: broker.dtma.pongs == number, "it answers")


def test_a_message_of_dtma_that_it_does_not_understand_ends_it() -> None:
    with running_broker() as broker:
        broker.dtma.send_raw(b'{"v":1,"kind":"opened","later":true}')
        assert broker.process.wait(10) == 1
        assert "control-broken" in broker.log_text() and "later" not in broker.log_text()


async def test_a_session_whose_stream_got_lost_is_given_back(script: Script) -> None:
    with running_broker() as broker:
        broker.dtma.without_stream = True
        async with unix_http(broker.path) as http:
            instance = broker.dtma.instance(script)
            answer = await http.post(path_of(instance), json=INITIALIZE, headers=headers_of("c-1"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, -32000)
        (name,) = broker.dtma.sessions(instance)
        eventually(lambda: broker.dtma.closed.get(name) is Closing.CLIENT, "it is given back")


async def test_what_is_said_is_in_no_log(script: Script) -> None:
    canary = "canary-7f3a"
    with running_broker() as broker:
        async with unix_http(broker.path) as http:
            instance = broker.dtma.instance(script)
            session, process = await asyncio.gather(open_session(http, instance), script.initialized())
            call = asyncio.ensure_future(session.call("tools/call", {"secret": canary}, canary))
            await process.heard()
            process.write(canary.encode() * 3, errors=True)
            process.write(canary.encode() + b"\n")
            assert "error" in await call
            assert (await session.post(request(canary))).status_code == 404
        assert canary not in broker.log_text() and session.id not in broker.log_text()
        assert "session-ended" in broker.log_text()


async def test_a_session_that_opens_when_nobody_waits_any_more_is_given_back(script: Script) -> None:
    with running_broker() as broker:
        broker.dtma.hold = True
        async with unix_http(broker.path) as http:
            instance = broker.dtma.instance(script)
            asked = asyncio.ensure_future(http.post(path_of(instance), json=INITIALIZE, headers=headers_of("c-1")))
            await asyncio.to_thread(eventually, lambda: bool(broker.dtma.asked), "it is asked for")
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            # Another request is answered after the hang-up of the first was noticed.
            assert (await http.get(path_of(instance), headers=headers_of("c-1"))).status_code == 400
            broker.dtma.release()
            await (await script.process()).ended()
        (name,) = broker.dtma.sessions(instance)
        await asyncio.to_thread(eventually, lambda: broker.dtma.closed.get(name) is Closing.CLIENT, "it is given back")
