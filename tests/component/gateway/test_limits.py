"""Limits of a connection on what runs and what comes, over workers, deaths, stops and hang-ups."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from collections.abc import Generator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from aiohttp import web

from support.gateway.held_calls import META, MODERN_HEADERS, Held, hang_up, post, start
from support.gateway.limited import ended, fresh, limited, refusal
from support.gateway.mcp_http import call, open_session, request
from support.gateway.mcp_servers import RealServer, ScriptedServer, Seen
from support.gateway.threads import eventually
from support.gateway.world import Connection, World, restricted, running_world
from support.tcp import is_connected
from toolbox_dtma.gateway.detached import MAX_DETACHED
from toolbox_dtma.wire import GrantLimits

pytestmark = pytest.mark.component


@pytest.fixture(scope="module")
def many() -> Generator[World]:
    """A gateway with four workers, for tests that kill or stop some."""
    with running_world(workers=4) as world:
        yield world


async def test_calls_at_once_are_limited_over_all_workers(many: World, held: tuple[ScriptedServer, Held]) -> None:
    script, switch = held
    connection = limited(many, script, concurrent_calls=3)
    async with fresh(many) as http:
        calls = await start(http, connection, script, calls=3)
        for _ in range(8):
            refused = await post(http, connection, call("x", id="again"))
            assert refusal(refused) == {
                "jsonrpc": "2.0",
                "id": "again",
                "error": {
                    "code": -32000,
                    "message": "3 calls of this connection may run at once; try again",
                    "data": {"retryAfterMs": 1000},
                },
            }
            assert refused.headers["Retry-After"] == "1"
        assert script.open == 3 and len(script.seen) == 3, "nothing of it was forwarded"
        switch.release()
        assert [await ended(each) for each in calls] == [200] * 3
        assert (await post(http, connection, call("x"))).json()["result"] == {}


async def test_requests_per_minute_are_limited_over_all_workers(many: World, script: ScriptedServer) -> None:
    connection = limited(many, script, requests_per_minute=20)
    async with fresh(many) as http:
        answers = await asyncio.gather(*(post(http, connection, request("ping")) for _ in range(40)))
        assert sorted(answer.status_code for answer in answers) == [200] * 20 + [202] * 20
        assert len(script.seen) == 20
        error = refusal(await post(http, connection, request("ping")))["error"]
        assert error["message"] == "This connection may make 20 requests per minute; try again"
        assert 40_000 < error["data"]["retryAfterMs"] <= 61_000
        others = many.connect(connection.instance, limits=GrantLimits(requests_per_minute=1))
        assert (await post(http, others, request("ping"))).status_code == 202


async def test_what_is_no_request_is_refused_with_429(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = limited(gateway, script, requests_per_minute=1)
    assert (await post(http, connection, {"jsonrpc": "2.0", "method": "notifications/x"})).status_code == 202
    for answer in (
        await post(http, connection, {"jsonrpc": "2.0", "method": "notifications/x"}),
        await post(http, connection, {"jsonrpc": "2.0", "id": 1, "result": {}}),
        await http.get(connection.url, headers=connection.headers),
        await http.delete(connection.url, headers=connection.headers),
    ):
        assert refusal(answer, status=429)["id"] is None
        assert 1 <= int(answer.headers["Retry-After"]) <= 61
    assert len(script.seen) == 1


async def test_since_2026_a_limited_request_gets_429(
    gateway: World, held: tuple[ScriptedServer, Held], http: httpx.AsyncClient
) -> None:
    script, switch = held
    connection = limited(gateway, script, concurrent_calls=1)
    (running,) = await start(http, connection, script, modern=True)
    refused = await post(http, connection, request("tools/call", {"name": "x", **META}, id=7), **MODERN_HEADERS)
    assert refusal(refused, status=429)["id"] == 7
    assert refused.headers["Retry-After"] == "1"
    switch.release()
    assert await ended(running) == 200


async def test_a_batch_counts_every_element_and_is_refused_whole(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = limited(gateway, script, requests_per_minute=4)
    note = {"jsonrpc": "2.0", "method": "notifications/x"}
    batch = [call("x", id=1), note, call("x", id=2)]
    assert (await post(http, connection, batch)).status_code == 202
    refused = await post(http, connection, batch)
    assert refused.status_code == 200
    assert [(error["id"], error["error"]["code"]) for error in refused.json()] == [(1, -32000), (2, -32000)]
    assert all(error["error"]["data"]["retryAfterMs"] > 0 for error in refused.json())
    assert (await post(http, connection, call("x"))).status_code == 202
    never = await post(http, limited(gateway, script, concurrent_calls=2), [call("x", id=n) for n in range(3)])
    assert [error["error"] for error in never.json()] == [
        {"code": -32000, "message": "2 calls of this connection may run at once; send fewer in one batch"}
    ] * 3
    assert "Retry-After" not in never.headers


async def test_streams_that_are_listened_to_take_no_place(
    gateway: World, held: tuple[ScriptedServer, Held], http: httpx.AsyncClient
) -> None:
    script, switch = held
    connection = limited(gateway, script, concurrent_calls=1, call_timeout_seconds=6)
    listening = [asyncio.create_task(http.get(connection.url, headers=connection.headers)) for _ in range(2)]
    listening.append(asyncio.create_task(post(http, connection, request("subscriptions/listen", {}))))
    await asyncio.to_thread(eventually, lambda: script.open == 3, "they listen")
    (running,) = await start(http, connection, script)
    assert refusal(await post(http, connection, call("x")))["error"]["data"]
    # Nor can a call hide behind one in a batch.
    hidden = [request("subscriptions/listen", {}, id=1), call("x", id=2)]
    assert [error["id"] for error in (await post(http, connection, hidden)).json()] == [1, 2]
    assert "took longer than 6 s" in (await asyncio.wait_for(running, 14)).json()["error"]["message"]
    await asyncio.to_thread(eventually, lambda: script.open == 3, "the server's side is closed")
    assert not any(each.done() for each in listening)
    switch.release()
    assert [await ended(each) for each in listening] == [200] * 3


async def test_what_policy_denies_counts_nothing(gateway: World, everyday: RealServer, http: httpx.AsyncClient) -> None:
    connection = gateway.connect(
        gateway.instance(everyday.port, surface=everyday.tools),
        expose=restricted("get_time"),
        limits=GrantLimits(requests_per_minute=3),
    )
    session = await open_session(http, connection)  # two requests
    for _ in range(5):
        assert (await session.post(call("echo"))).json()["error"]["code"] == -32602
    assert "twelve" in (await session.post(call("get_time"))).text
    limit = await session.post(call("get_time"))
    assert limit.status_code == 200 and limit.json()["error"]["data"]["retryAfterMs"] > 0


async def test_a_hang_up_gives_no_place_back(
    gateway: World, held: tuple[ScriptedServer, Held], http: httpx.AsyncClient
) -> None:
    script, switch = held
    connection = limited(gateway, script, concurrent_calls=2)
    await hang_up(gateway, *await start(http, connection, script, calls=2))
    for _ in range(5):
        assert refusal(await post(http, connection, call("x")))["error"]["data"] == {"retryAfterMs": 1000}
    assert script.open == 2 and len(script.seen) == 2
    switch.release()
    await asyncio.to_thread(eventually, lambda: script.open == 0, "the calls end at the server")
    await asyncio.to_thread(eventually, lambda: places(gateway, connection) == 2, "and give their places back")


async def test_a_hang_up_within_a_stream_gives_no_place_back(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    stop = threading.Event()

    async def rush(request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while not stop.is_set():
            await response.write(b"data: {}\n\n" * 10)
            await asyncio.sleep(0)
        return response

    script.answer = rush
    try:
        for _ in range(10):
            connection = limited(gateway, script, concurrent_calls=1)
            async with http.stream("POST", connection.url, json=call("x"), headers=connection.headers) as stream:
                await anext(stream.aiter_raw())
            # One that is let in would be answered without end.
            refused = await asyncio.wait_for(post(http, connection, call("x")), 10)
            assert refusal(refused)["error"]["data"] == {"retryAfterMs": 1000}
        assert script.open == 10
    finally:
        stop.set()
    await asyncio.to_thread(eventually, lambda: script.open == 0, "the calls end at the server")


async def test_a_call_that_was_answered_takes_no_place_while_its_stream_still_ends(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    ended = threading.Event()

    async def slow_to_end(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for id_ in map(int, re.findall(rb'"id": ?(\d+)', seen.body)):
            await response.write(b'data: {"jsonrpc":"2.0","id":%d,"result":{}}\n\n' % id_)
        await asyncio.to_thread(ended.wait, 15)
        return response

    script.answer = slow_to_end
    connection = limited(gateway, script, concurrent_calls=1)
    try:
        async with AsyncExitStack() as streams:
            for id_ in (1, 2):
                asking = http.stream("POST", connection.url, json=call("x", id=id_), headers=connection.headers)
                answer = await streams.enter_async_context(asking)
                assert b'"id":%d,"result"' % id_ in await anext(answer.aiter_raw())
            # Only calls are looked at: a batch with something else keeps its places to the end.
            both = limited(gateway, script, concurrent_calls=2)
            batch = [call("x", id=3), request("ping", id=4)]
            async with http.stream("POST", both.url, json=batch, headers=both.headers) as third:
                await anext(third.aiter_raw())
                assert refusal(await post(http, both, call("x")))
    finally:
        ended.set()


def places(world: World, connection: Connection) -> int:
    """How many pings go through at once, one after the other as the server answers them."""
    with httpx.Client(verify=world.tls.client_context(), timeout=15, trust_env=False) as http:
        batch = [request("ping", id=n) for n in range(2)]
        answer = http.post(connection.url, json=batch, headers=connection.headers).json()
    return 0 if isinstance(answer, list) and "error" in answer[0] else 2


async def test_a_call_that_runs_on_ends_with_its_time(
    gateway: World, held: tuple[ScriptedServer, Held], http: httpx.AsyncClient
) -> None:
    script, _ = held
    connection = limited(gateway, script, concurrent_calls=1, call_timeout_seconds=2)
    await hang_up(gateway, *await start(http, connection, script))
    assert refusal(await post(http, connection, call("x")))
    await asyncio.to_thread(eventually, lambda: script.open == 0, "the server's side is closed")
    (again,) = await start(http, connection, script)
    await hang_up(gateway, again)


async def test_more_calls_than_a_connection_s_share_run_on_where_its_limit_bounds_them(
    held: tuple[ScriptedServer, Held],
) -> None:
    script, switch = held
    with running_world(workers=1) as world:
        instance = world.instance(script.port)
        greedy, careful = world.connect(instance), world.connect(instance)
        limit = world.connect(instance, limits=GrantLimits(concurrent_calls=1000))
        pool = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            verify=world.tls.client_context(), timeout=15, trust_env=False, limits=pool
        ) as http:
            calls = await start(http, greedy, script, calls=MAX_DETACHED + 6)
            await hang_up(world, *calls)
            await asyncio.to_thread(eventually, lambda: script.open == MAX_DETACHED, "its share runs on")
            # Nobody else has less for that.
            await hang_up(world, *await start(http, careful, script, calls=3))
            await hang_up(world, *await start(http, limit, script, calls=MAX_DETACHED + 6))
            assert (await post(http, careful, request("ping"))).status_code == 200
            assert script.open == MAX_DETACHED + 3 + MAX_DETACHED + 6
        switch.release()
        await asyncio.to_thread(eventually, lambda: script.open == 0, "all end")


async def test_a_lower_limit_lets_what_runs_end_and_a_change_revokes_nothing(
    gateway: World, held: tuple[ScriptedServer, Held], http: httpx.AsyncClient
) -> None:
    script, switch = held
    connection = limited(gateway, script, concurrent_calls=3)
    calls = await start(http, connection, script, calls=2)
    await asyncio.to_thread(gateway.change_grant, connection, limits=GrantLimits(concurrent_calls=1))
    assert refusal(await post(http, connection, call("x")))
    assert script.open == 2
    await asyncio.to_thread(gateway.change_grant, connection, limits=None)
    calls += await start(http, connection, script, calls=3)
    switch.release()
    assert [await ended(each) for each in calls] == [200] * 5


async def test_a_killed_worker_s_places_are_free_again_and_the_minute_goes_on(
    many: World, held: tuple[ScriptedServer, Held]
) -> None:
    script, switch = held
    connection = limited(many, script, concurrent_calls=4, requests_per_minute=6)
    async with fresh(many) as http:
        calls = await start(http, connection, script, calls=4)
        assert refusal(await post(http, connection, call("x")))["error"]["data"] == {"retryAfterMs": 1000}
        hellos = len(many.dtma.hellos)
        for victim in many.dtma.workers:
            os.kill(victim.pid, signal.SIGKILL)
        await asyncio.to_thread(
            eventually, lambda: len(many.dtma.hellos) == hellos + 4, "all workers are replaced", seconds=60
        )
        await asyncio.to_thread(eventually, lambda: many.dtma.is_acked(many.dtma.revision), "they have the policy")
        assert [await ended(each) for each in calls] == [0] * 4
        await asyncio.to_thread(eventually, lambda: script.open == 0, "their calls end at the server")
        # Two are left of the minute; places are not what is missing.
        calls = await start(http, connection, script, calls=2)
        assert refusal(await post(http, connection, call("x")))["error"]["data"]["retryAfterMs"] > 1000
        switch.release()
        assert [await ended(each) for each in calls] == [200] * 2


async def test_a_stopped_worker_keeps_its_places_and_holds_up_nobody(
    many: World, held: tuple[ScriptedServer, Held]
) -> None:
    script, switch = held
    connection = limited(many, script, concurrent_calls=2, requests_per_minute=1000)
    async with fresh(many) as http:
        (first,) = await start(http, connection, script)
        stopped = [hello.pid for hello in many.dtma.workers if is_connected(hello.pid, script.port)]
        assert len(stopped) == 1
        os.kill(stopped[0], signal.SIGSTOP)
        try:
            answered: list[dict[str, Any]] = []
            running: list[asyncio.Task[httpx.Response]] = []

            async def ask() -> None:
                # What the kernel gave to the stopped worker is given up; what others got is answered.
                asking = asyncio.create_task(post(http, connection, call("x", id="other")))
                done, _ = await asyncio.wait({asking}, timeout=0.5)
                if done:
                    answered.append(refusal(asking.result()))
                else:
                    running.append(asking)

            while not answered or script.open < 2:
                await ask()
            assert script.open == 2, "one of two places was free"
            assert answered[0]["error"]["data"] == {"retryAfterMs": 1000}
        finally:
            os.kill(stopped[0], signal.SIGCONT)
        switch.release()
        assert await ended(first) == 200
        assert {await ended(each) for each in running} == {200}


async def test_refused_requests_name_their_reason_in_the_log(
    gateway: World, held: tuple[ScriptedServer, Held], http: httpx.AsyncClient
) -> None:
    script, _ = held
    connection = limited(
        gateway, script, concurrent_calls=1, requests_per_minute=2, max_request_bytes=1024, call_timeout_seconds=6
    )
    await post(http, connection, request("ping"))
    (running,) = await start(http, connection, script)
    await post(http, connection, call("x"))
    await post(http, connection, call("x", {"x": "y" * 1024}))
    await asyncio.wait_for(running, 14)
    await post(http, connection, call("x"))
    reasons = [line["reason"] for line in gateway.log_lines() if line.get("connection") == connection.uid]
    assert reasons == ["concurrency-limit", "request-size-limit", "call-timeout", "rate-limit"]
