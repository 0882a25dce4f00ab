"""A newer version of the gateway, or new settings, while agents are at work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from aiohttp import web

from support.gateway.mcp_http import call, request
from support.gateway.mcp_servers import ScriptedServer, scripted_server
from support.gateway.threads import eventually
from support.gateway.world import Connection, World, running_world
from support.pairs import Authority, replace, serial, served_serial
from toolbox_dtma.wire import GrantLimits

pytestmark = pytest.mark.component

DRAIN = 3.0
ROLL = 120.0
"""Seconds that two starts of workers may take on a busy machine."""


@pytest.fixture
def world() -> Generator[World]:
    with running_world(settings={"drainSeconds": DRAIN}) as world:
        yield world


@dataclass
class Callers:
    """Agents that call without a pause until they are told to stop; what went wrong is kept."""

    world: World
    connection: Connection
    answered: int = 0
    failures: list[str] = field(default_factory=list[str])
    stopping: bool = False

    async def keep_alive(self) -> None:
        """One client, as few connections as the gateway lets it."""
        async with self._client() as http:
            while not self.stopping:
                await self._ask(http)

    async def anew(self) -> None:
        """A connection for each call."""
        while not self.stopping:
            async with self._client() as http:
                await self._ask(http)

    async def idle(self) -> None:
        """One client that calls now and then, within the time that a drain leaves it."""
        async with self._client() as http:
            while not self.stopping:
                await self._ask(http)
                await asyncio.sleep(DRAIN / 10)

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(verify=self.world.tls.client_context(), trust_env=False, timeout=60)

    async def _ask(self, http: httpx.AsyncClient) -> None:
        try:
            answer = await http.post(self.connection.url, json=request("ping"), headers=self.connection.headers)
            if answer.status_code != 202:
                self.failures.append(f"{answer.status_code} {answer.text}")
        except httpx.TransportError as error:
            self.failures.append(repr(error))
        self.answered += 1


def reload(world: World) -> None:
    assert world.process is not None
    os.kill(supervisor(world), signal.SIGHUP)


def supervisor(world: World) -> int:
    return int((world.folder / "run" / "gateway.pid").read_text())


def pids(world: World) -> set[int]:
    return {hello.pid for hello in world.dtma.workers}


def events(world: World, *names: str) -> list[str]:
    return [line["event"] for line in world.log_lines() if line["event"] in names]


def await_reloaded(world: World, times: int = 1) -> None:
    """New workers serve, and both old ones of each time have heard that they accept nobody any more."""
    seen = lambda: events(world, "reloaded", "draining")  # noqa: E731
    done = lambda: (seen().count("reloaded"), seen().count("draining")) == (times, 2 * times)  # noqa: E731
    eventually(done, "the workers are replaced", seconds=ROLL)


async def reloaded(world: World, times: int = 1) -> None:
    await asyncio.to_thread(await_reloaded, world, times)


async def test_no_call_fails_while_the_gateway_becomes_a_new_version_of_itself(
    world: World, script: ScriptedServer
) -> None:
    connection = await asyncio.to_thread(lambda: world.connect(world.instance(script.port)))
    callers = Callers(world, connection)
    before, first = pids(world), supervisor(world)
    async with asyncio.TaskGroup() as group:
        for work in (callers.keep_alive, callers.keep_alive, callers.anew, callers.idle):
            group.create_task(work())
        reload(world)
        await reloaded(world)
        after = lambda: len(pids(world)) == 2 and not pids(world) & before  # noqa: E731
        await asyncio.to_thread(eventually, after, "the old workers end", seconds=30)
        callers.stopping = True
    assert callers.failures == []
    assert callers.answered > 20
    assert supervisor(world) == first, "the process that systemd watches stays the same"
    assert events(world, "worker-killed", "worker-ended", "reload-failed") == []


async def test_a_stream_ends_and_a_running_call_does_not(patient_world: World) -> None:
    world = patient_world
    hold = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def answer(asked: Any, _seen: Any) -> Any:
        if asked.method == "POST":
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(hold.wait(), loop))
            return web.json_response({"jsonrpc": "2.0", "id": 1, "result": {}})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(asked)
        await response.write(b"data: {}\n\n")
        await asyncio.sleep(3600)
        return response

    with scripted_server(answer) as script:
        connection = await asyncio.to_thread(lambda: world.connect(world.instance(script.port)))
        async with httpx.AsyncClient(verify=world.tls.client_context(), trust_env=False, timeout=2 * ROLL) as http:
            calling = asyncio.create_task(http.post(connection.url, json=request("ping"), headers=connection.headers))
            async with http.stream("GET", connection.url, headers=connection.headers) as stream:
                chunks = stream.aiter_raw()
                assert await anext(chunks) == b"data: {}\n\n"
                reload(world)
                with pytest.raises((httpx.TransportError, StopAsyncIteration)):
                    async with asyncio.timeout(ROLL):
                        await anext(chunks)
            await reloaded(world)
            async with http.stream("GET", connection.url, headers=connection.headers) as stream:
                assert await anext(stream.aiter_raw()) == b"data: {}\n\n", "it connects again, to a new worker"
                assert not calling.done()
                hold.set()
                async with asyncio.timeout(10):
                    assert (await calling).status_code == 200


@pytest.fixture
def patient_world() -> Generator[World]:
    """Its drain is longer than a busy machine takes to start two workers."""
    with running_world(settings={"drainSeconds": 2 * ROLL}) as world:
        yield world


async def test_workers_that_drain_still_obey_a_revocation(patient_world: World) -> None:
    world = patient_world

    async def answer(asked: Any, _seen: Any) -> Any:
        del asked
        await asyncio.sleep(3600)

    with scripted_server(answer) as script:
        instance = await asyncio.to_thread(world.instance, script.port)
        connection = await asyncio.to_thread(world.connect, instance)
        async with httpx.AsyncClient(verify=world.tls.client_context(), trust_env=False, timeout=2 * ROLL) as http:
            calls = [
                asyncio.create_task(http.post(connection.url, json=request("ping"), headers=connection.headers))
                for _ in range(8)
            ]
            await asyncio.to_thread(eventually, lambda: len(script.seen) == 8, "the calls run")
            reload(world)
            draining = lambda: events(world, "draining").count("draining") == 2  # noqa: E731
            await asyncio.to_thread(eventually, draining, "both drain", seconds=ROLL)
            began = time.monotonic()
            revision = await asyncio.to_thread(world.dtma.push, _gone(connection))
            await asyncio.to_thread(eventually, lambda: world.dtma.is_acked(revision), "every worker acknowledged")
            answers = await asyncio.gather(*calls)
            took = time.monotonic() - began
    assert [answer.status_code for answer in answers] == [401] * 8
    assert took < ROLL, "nobody waits for those that drain"


async def test_what_drains_still_counts_for_the_limit_and_every_call_is_recorded_once(patient_world: World) -> None:
    world = patient_world
    hold = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def answer(_asked: Any, _seen: Any) -> Any:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(hold.wait(), loop))
        return web.json_response({"jsonrpc": "2.0", "id": 1, "result": {"content": []}})

    with scripted_server(answer) as script:
        instance = await asyncio.to_thread(world.instance, script.port)
        connection = await asyncio.to_thread(lambda: world.connect(instance, limits=GrantLimits(concurrent_calls=1)))
        async with httpx.AsyncClient(verify=world.tls.client_context(), trust_env=False, timeout=2 * ROLL) as http:

            async def ask(tool: str) -> httpx.Response:
                return await http.post(connection.url, json=call(tool), headers=connection.headers)

            running = asyncio.create_task(ask("long"))
            await asyncio.to_thread(eventually, lambda: len(script.seen) == 1, "the call runs")
            reload(world)
            await reloaded(world)
            assert not running.done()
            assert "error" in (await ask("refused")).json(), "the old worker's call takes the only place"
            hold.set()
            assert "result" in (await running).json()
            assert "result" in (await ask("next")).json(), "its place is free"
        records = lambda: sorted((each.tool, each.outcome) for each in world.dtma.calls_of(connection.uid))  # noqa: E731
        await asyncio.to_thread(eventually, lambda: len(records()) == 3, "the calls are told")
        assert records() == [("long", "ok"), ("next", "ok"), ("refused", "limited")]


def _gone(connection: Connection) -> Any:
    from toolbox_dtma.link.messages import Change

    return Change(grants_gone=(connection.uid,))


def test_settings_that_cannot_work_change_nothing(world: World, script: ScriptedServer) -> None:
    connection = world.connect(world.instance(script.port))
    before = pids(world)
    settings = json.loads(world.config.read_text())
    world.config.write_text(json.dumps({**settings, "clients": {"headSeconds": 0}}))
    reload(world)
    refused = lambda: [line for line in world.log_lines() if line["event"] == "reload-refused"]  # noqa: E731
    (line,) = eventually(refused, "it is refused", seconds=ROLL)
    assert "clients.headSeconds: Input should be greater than 0" in line["why"]
    assert pids(world) == before
    # A worker that comes back does not read the broken file either.
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(pids(world)) == 2 and victim not in pids(world), "it is replaced", seconds=ROLL)
    with httpx.Client(verify=world.tls.client_context(), trust_env=False, timeout=10) as http:
        assert http.post(connection.url, json=request("ping"), headers=connection.headers).status_code == 202


def test_new_settings_are_in_force_after_a_reload(world: World) -> None:
    settings = json.loads(world.config.read_text())
    world.config.write_text(json.dumps({**settings, "workers": 3, "clients": {"headSeconds": 0.2}}))
    reload(world)
    await_reloaded(world)
    with socket.create_connection(("127.0.0.1", world.port), timeout=10) as plain:
        context = world.tls.client_context()
        with context.wrap_socket(plain, server_hostname="localhost") as tls:
            began = time.monotonic()
            assert tls.recv(1000).startswith(b"HTTP/1.1 408 ")
            assert time.monotonic() - began < 5
    assert events(world, "restart-needed") == ["restart-needed"], "what a reload cannot change is said"
    eventually(lambda: len(pids(world)) == 2, "two workers are left", seconds=ROLL)


def test_a_version_that_does_not_serve_leaves_the_old_workers_at_work(world: World, script: ScriptedServer) -> None:
    connection = world.connect(world.instance(script.port))
    before = pids(world)
    # The new workers get no policy, as if they could not reach DTMA.
    world.dtma.hold_snapshot = True
    reload(world)
    eventually(lambda: len(world.dtma.hellos) == 3, "the first of them is there", seconds=ROLL)
    newcomer = world.dtma.hellos[-1].pid
    os.kill(newcomer, signal.SIGKILL)
    failed = lambda: [line for line in world.log_lines() if line["event"] == "reload-failed"]  # noqa: E731
    (line,) = eventually(failed, "it is given up", seconds=30)
    assert (line["replaced"], line["why"]) == (0, "the new worker ended with -9")
    eventually(lambda: pids(world) == before, "the old ones are there, and nobody else")
    with httpx.Client(verify=world.tls.client_context(), trust_env=False, timeout=10) as http:
        assert http.post(connection.url, json=request("ping"), headers=connection.headers).status_code == 202


def test_a_renewed_certificate_is_served_to_new_connections_and_kept_over_a_reload_with_broken_files(
    world: World, script: ScriptedServer
) -> None:
    connection = world.connect(world.instance(script.port))
    first = serial(world.tls.certificate.read_bytes())
    assert served_serial(world.port) == first
    authority = Authority()
    pair = authority.issue()
    forever = httpx.Limits(keepalive_expiry=None)
    with httpx.Client(verify=world.tls.client_context(), trust_env=False, timeout=10, limits=forever) as http:
        ask = lambda: http.post(connection.url, json=request("ping"), headers=connection.headers)  # noqa: E731
        assert ask().status_code == 202
        replace(world.tls.key, pair.key)
        replace(world.tls.certificate, pair.certificate)
        # Each connection may meet either worker.
        new = serial(pair.certificate)
        many = lambda: {served_serial(world.port) for _ in range(8)} == {new}  # noqa: E731
        eventually(many, "the new pair is served", seconds=30)
        assert ask().status_code == 202, "on a connection of before, made under the old certificate"

    replace(world.tls.key, authority.issue().key)
    refused = lambda: events(world, "certificate-refused")  # noqa: E731
    eventually(refused, "the wrong pair is refused", seconds=30)
    victim = world.dtma.workers[0].pid
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(pids(world)) == 2 and victim not in pids(world), "it is replaced", seconds=ROLL)
    reload(world)
    refusal = lambda: [line["why"] for line in world.log_lines() if line["event"] == "reload-refused"]  # noqa: E731
    (why,) = eventually(refusal, "a reload with them is refused", seconds=ROLL)
    assert "is not the key of the first certificate" in why
    trusting = authority.client_context()
    with (
        socket.create_connection(("127.0.0.1", world.port), timeout=10) as plain,
        trusting.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        assert isinstance(tls, ssl.SSLSocket)
    assert events(world, "certificate-renewed", "certificate-refused") == ["certificate-renewed", "certificate-refused"]
