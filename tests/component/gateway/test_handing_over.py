"""Call records on their way to DTMA: killed workers, a DTMA that is away, an orderly stop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from aiohttp import web

from support.gateway.mcp_http import call
from support.gateway.mcp_servers import ScriptedServer, Seen, json_answer, scripted_server
from support.gateway.threads import eventually
from support.gateway.world import Connection, World, running_world

pytestmark = pytest.mark.component

ANSWER = json_answer({"jsonrpc": "2.0", "id": 1, "result": {"content": []}})


@pytest.fixture
def server() -> Generator[ScriptedServer]:
    with scripted_server(ANSWER) as server:
        yield server


def client_of(world: World) -> httpx.Client:
    """A client for a world of its own."""
    return httpx.Client(verify=world.tls.client_context(), trust_env=False, timeout=10)


def calls(world: World, connection: Connection, names: list[str]) -> None:
    """One call after the other, each on a connection of its own, so that every worker gets some."""
    for name in names:
        with client_of(world) as http:
            http.post(connection.url, json=call(name), headers=connection.headers).raise_for_status()


def stop(world: World) -> None:
    """An orderly end."""
    assert world.process is not None
    world.process.send_signal(signal.SIGTERM)
    assert world.process.wait(40) == 0


def test_an_orderly_stop_of_several_workers_hands_every_record_over(server: ScriptedServer) -> None:
    with running_world(workers=3) as world:
        connection = world.connect(world.instance(server.port))
        names = [f"tool-{number}" for number in range(120)]
        with ThreadPoolExecutor(6) as pool:
            for running in [pool.submit(calls, world, connection, names[start::6]) for start in range(6)]:
                running.result()
        stop(world)
        assert sorted(record.tool for record in world.dtma.calls_of(connection.uid)) == sorted(names)
        assert len({told.stream for told in world.dtma.told if told.calls}) > 1, "one worker did it all"
        assert not any(told.lost or told.dropped for told in world.dtma.told)
        assert not any(line["event"] == "calls-lost" for line in world.log_lines())


def test_calls_that_a_stop_cuts_off_are_recorded_too() -> None:
    begun = threading.Semaphore(0)

    async def silent(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        begun.release()
        await asyncio.Event().wait()
        raise AssertionError

    with scripted_server(silent) as server, running_world(workers=2, settings={"drainSeconds": 0.3}) as world:
        connection = world.connect(world.instance(server.port))

        def ask(name: str) -> None:
            with client_of(world) as http:
                try:
                    http.post(connection.url, json=call(name), headers=connection.headers)
                except httpx.TransportError:
                    return

        asking = [threading.Thread(target=ask, args=(f"tool-{number}",)) for number in range(4)]
        for thread in asking:
            thread.start()
        for _ in asking:
            assert begun.acquire(timeout=10)
        stop(world)
        for thread in asking:
            thread.join(10)
        found = Counter((record.tool, record.outcome.value) for record in world.dtma.calls_of(connection.uid))
        assert found == Counter((f"tool-{number}", "cancelled") for number in range(4))


def test_a_killed_worker_s_records_are_told_by_its_successor_and_what_it_had_in_hand_is_counted(
    server: ScriptedServer,
) -> None:
    begun = threading.Event()

    async def silent(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    with running_world(workers=1) as world, scripted_server(silent) as endless:
        connection = world.connect(world.instance(server.port))
        waiting = world.connect(world.instance(endless.port))
        world.dtma.take_calls = False
        calls(world, connection, ["a", "b", "c"])
        eventually(lambda: world.dtma.told, "a message that is not acknowledged")
        calls(world, connection, ["d", "e"])

        def ask() -> None:
            with client_of(world) as http, pytest.raises(httpx.TransportError):
                http.post(waiting.url, json=call("x"), headers=waiting.headers)

        asking = threading.Thread(target=ask)
        asking.start()
        assert begun.wait(10)
        world.dtma.take_calls = True
        os.kill(world.dtma.workers[0].pid, signal.SIGKILL)
        asking.join(10)
        eventually(lambda: len(world.dtma.hellos) == 2, "a new worker says hello", seconds=30)
        stop(world)
        assert sorted(record.tool for record in world.dtma.calls) == ["a", "b", "c", "d", "e"]
        batches = {(told.stream, told.batch): told for told in world.dtma.told}
        assert len({told.stream for told in world.dtma.told}) == 1, "the successor goes on where the other was"
        assert sum(told.lost for told in batches.values()) == 1


def test_what_happens_while_dtma_is_away_is_told_when_it_is_back(server: ScriptedServer) -> None:
    with running_world(workers=2) as world:
        connection = world.connect(world.instance(server.port))
        world.dtma.take_calls = False
        calls(world, connection, [f"before-{number}" for number in range(6)])
        eventually(lambda: len(world.dtma.calls) > 0, "told, and not acknowledged")
        world.dtma.stop()
        calls(world, connection, [f"meanwhile-{number}" for number in range(6)])
        world.dtma.take_calls = True
        world.dtma.start()
        eventually(lambda: len(world.dtma.hellos) == 4, "both are back")
        stop(world)
        found = Counter(record.tool for record in world.dtma.calls)
        assert found == Counter(f"{when}-{number}" for when in ("before", "meanwhile") for number in range(6))
        # The same batch under the same number held the same.
        told: dict[tuple[str, int], set[str]] = {}
        for message in world.dtma.told:
            told.setdefault((message.stream, message.batch), set()).add(message.model_dump_json(include={"calls"}))
        assert all(len(each) == 1 for each in told.values())


def test_a_stop_does_not_wait_long_for_a_dtma_that_is_away_and_says_what_is_lost(server: ScriptedServer) -> None:
    with running_world(workers=1) as world:
        connection = world.connect(world.instance(server.port))
        world.dtma.take_calls = False
        calls(world, connection, ["a"])
        world.dtma.stop()
        stop(world)
        assert [line["event"] for line in world.log_lines() if line["event"] == "calls-lost"] == ["calls-lost"]
