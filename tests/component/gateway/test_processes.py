"""Supervisor and workers as processes, and their socket to DTMA."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from support.gateway.mcp_http import call, request
from support.gateway.mcp_servers import RealServer, ScriptedServer, Seen, real_server, scripted_server
from support.gateway.threads import eventually
from support.gateway.world import Connection, World, running_world
from toolbox_dtma.link.messages import Change, Delta, KeyRing, Ping, Snapshot

pytestmark = pytest.mark.component


def client_of(world: World) -> httpx.Client:
    """A client for a world of its own."""
    return httpx.Client(verify=world.tls.client_context(), trust_env=False, timeout=10)


def status(world: World, connection: Connection) -> int:
    """What a ping gets on a new TCP connection."""
    with client_of(world) as http:
        try:
            return http.post(connection.url, json=request("ping"), headers=connection.headers).status_code
        except httpx.TransportError:
            return 0


def is_gone(pid: int) -> bool:
    """Whether a process ended (a zombie did)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_without_a_snapshot_nothing_is_served(script: ScriptedServer) -> None:
    world = World(workers=1)
    try:
        world.dtma.hold_snapshot = True
        world.dtma.start()
        world.start_gateway()
        eventually(lambda: world.dtma.workers, "the worker says hello", seconds=30)
        anyone = Connection("u", "i", f"{world.base}/servers/i/mcp", "t")
        assert status(world, anyone) == 503
        # Half a snapshot is none.
        world.dtma.send(Snapshot(revision=1, part=0, parts=2, change=Change()))
        assert status(world, anyone) == 503
    finally:
        world.close()


async def drip(request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
    """An event every 50 ms, for ever."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await response.write(b"data: {}\n\n")
        await asyncio.sleep(0.05)


def test_the_last_policy_serves_for_a_while_after_dtma_is_gone(script: ScriptedServer) -> None:
    with running_world(workers=1, settings={"policyGraceSeconds": 6.0}) as world:
        connection = world.connect(world.instance(script.port))
        with scripted_server(drip) as dripping, client_of(world) as http:
            listener = world.connect(world.instance(dripping.port))
            begun = threading.Event()
            ends: list[str] = []

            def listen() -> None:
                try:
                    with http.stream("GET", listener.url, headers=listener.headers) as answer:
                        for _ in answer.iter_raw():
                            begun.set()
                    ends.append("ended")
                except httpx.TransportError:
                    ends.append("cut")

            reader = threading.Thread(target=listen)
            reader.start()
            assert begun.wait(10)
            world.dtma.stop()
            assert status(world, connection) == 202 and not ends
            eventually(lambda: status(world, connection) == 503, "the grace period ends", seconds=30)
            # No stream outlives the policy that allowed it.
            eventually(lambda: ends == ["cut"], "the stream is cut")
            reader.join(5)
        world.dtma.start()
        eventually(lambda: status(world, connection) == 202, "DTMA is back")
        assert [line["event"] for line in world.log_lines() if "dtma" in line["event"]] == ["dtma-away", "dtma-back"]


def test_a_worker_tells_the_revision_it_has_when_it_comes_back(script: ScriptedServer) -> None:
    with running_world(workers=1) as world:
        world.connect(world.instance(script.port))
        revision = world.dtma.revision
        world.dtma.stop()
        world.dtma.start()
        eventually(lambda: len(world.dtma.hellos) == 2, "a second hello")
        first, second = world.dtma.hellos
        assert (first.revision, second.revision) == (0, revision)
        assert (first.worker, first.pid) == (second.worker, second.pid)


@pytest.mark.parametrize("wrong", ["a revision that is not the next", "an unusable ring"])
def test_a_message_out_of_order_makes_the_worker_ask_again(script: ScriptedServer, wrong: str) -> None:
    with running_world(workers=1) as world:
        connection = world.connect(world.instance(script.port))
        if wrong == "an unusable ring":
            change = Change(keyring=KeyRing(signing="none", keys=()))
            world.dtma.send(Delta(revision=world.dtma.revision + 1, change=change))
        else:
            world.dtma.send(Delta(revision=1, change=Change(grants_gone=(connection.uid,))))
        eventually(lambda: len(world.dtma.hellos) == 2, "the worker connects again")
        eventually(lambda: status(world, connection) == 202, "it has the policy again")


def test_a_killed_worker_comes_back_and_sessions_go_on(script: ScriptedServer) -> None:
    with running_world() as world:
        connection = world.connect(world.instance(script.port))
        victim = world.dtma.workers[0].pid
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(world.dtma.hellos) == 3, "a new worker says hello", seconds=30)
        assert victim not in [hello.pid for hello in world.dtma.workers]
        assert {hello.worker for hello in world.dtma.workers} == {"worker-0", "worker-1"}
        for _ in range(8):
            assert status(world, connection) == 202


def test_workers_die_with_a_killed_supervisor() -> None:
    with running_world() as world:
        pids = [hello.pid for hello in world.dtma.workers]
        assert world.process is not None
        world.process.kill()
        world.process.wait(5)
        eventually(lambda: all(is_gone(pid) for pid in pids), "the workers end")


def test_on_sigterm_a_running_call_ends_and_then_the_processes() -> None:
    with running_world(workers=1) as world, real_server() as everyday:
        connection = world.connect(world.instance(everyday.port))
        answers: list[str] = []
        pids = [hello.pid for hello in world.dtma.workers]
        message = call("wait_long", {"seconds": 1.0})
        meta: dict[str, Any] = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        message["params"]["_meta"] = meta
        headers = {
            **connection.headers,
            "MCP-Protocol-Version": "2026-07-28",
            "Mcp-Method": "tools/call",
            "Mcp-Name": "wait_long",
        }

        def ask() -> None:
            with client_of(world) as http:
                answers.append(http.post(connection.url, json=message, headers=headers).text)

        asking = threading.Thread(target=ask)
        asking.start()
        assert everyday.begun.wait(10)
        assert world.process is not None
        world.process.send_signal(signal.SIGTERM)
        asking.join(15)
        assert len(answers) == 1 and '"waited"' in answers[0]
        assert world.process.wait(10) == 0
        eventually(lambda: all(is_gone(pid) for pid in pids), "the workers end")
        assert not list((world.folder / "run").iterdir()), "the pid file is removed"


def test_pings_are_answered(gateway: World) -> None:
    before = len(gateway.dtma.pongs)
    gateway.dtma.send(Ping(nonce=77))
    eventually(lambda: gateway.dtma.pongs[before:] == [77, 77], "a pong of each worker")


def test_the_gateway_does_not_run_as_root(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to be refused as root")
    config = tmp_path / "gateway.json"
    done = subprocess.run(
        [sys.executable, "-m", "toolbox_dtma.gateway", "--config", str(config)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3] / "dtma")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2 and "setpriv --reuid=" in done.stderr


def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    with running_world(workers=1) as world:
        second = World(workers=1)
        try:
            text = second.config.read_text().replace(f'"listenPort": {second.port}', f'"listenPort": {world.port}')
            second.config.write_text(text)
            second.start_gateway()
            assert second.process is not None
            assert second.process.wait(20) == 2
            assert second.log_text().splitlines()[-1].startswith(f"Cannot listen on 127.0.0.1:{world.port}: ")
        finally:
            second.close()


def test_a_real_tool_call_works_over_plain_http_on_loopback(everyday: RealServer) -> None:
    with running_world(workers=1, tls=False) as world:
        connection = world.connect(world.instance(everyday.port))
        assert connection.url.startswith("http://127.0.0.1:")
        assert status(world, connection) == 400  # the SDK server wants a session first: it was reached
