"""Whose a session is, how it begins, and how it ends."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from typing import Any

import httpx
import pytest

from support.async_poll import until
from support.broker.client import RawSession, headers_of, initialize, open_session, path_of, unix_http
from support.broker.inside import Inside, inside
from support.broker.programs import INITIALIZED, Script, Scripted
from support.broker.world import Broker
from support.gateway.mcp_http import INITIALIZE, messages, request
from toolbox_dtma.broker.session import Patience
from toolbox_dtma.link.broker import Closing, Ended, Refused, SessionRefused

pytestmark = pytest.mark.component


async def opened(http: httpx.AsyncClient, broker: Broker | Inside, script: Script) -> tuple[RawSession, Scripted]:
    """A session and its process, of a new instance."""
    session, process = await asyncio.gather(open_session(http, broker.dtma.instance(script)), script.initialized())
    return session, process


async def test_the_handshake_reaches_the_process_as_it_was_sent_and_its_answer_comes_back(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    body = b'{ "jsonrpc":"2.0","id":"a" ,\r\n "method":"initialize","params":{"x":1.50,\t"y":"\xc3\xa9"}}'
    asked = asyncio.ensure_future(http.post(path_of(instance), content=body, headers=headers_of("c-1")))
    process = await script.process()
    assert await process.line() == body.replace(b"\r\n", b"  ") + b"\n"
    assert (process.request.instance, process.request.connection, process.request.ticket) == (instance, "c-1", "")
    process.write(b'\n{"result" : {"n":1.50},"id":"a","jsonrpc":"2.0"}\r\n')
    answer = await asked
    assert answer.content == b'{"result" : {"n":1.50},"id":"a","jsonrpc":"2.0"} '
    assert answer.headers["Content-Type"].startswith("application/json")
    assert len(answer.headers["Mcp-Session-Id"]) == 32


async def test_two_connections_cannot_use_each_others_sessions(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    sessions: dict[str, RawSession] = {}
    processes: dict[str, Scripted] = {}
    for connection in ("c-1", "c-2"):
        sessions[connection], processes[connection] = await asyncio.gather(
            open_session(http, instance, connection), script.initialized()
        )
    other = broker.dtma.instance(script)
    for mine, yours in itertools.permutations(("c-1", "c-2")):
        stolen = {**headers_of(mine), "Mcp-Session-Id": sessions[yours].id}
        for path, headers in (
            (path_of(instance), stolen),
            (path_of(other), sessions[mine].headers),
            (path_of(instance), {**sessions[mine].headers, "Mcp-Session-Id": secrets.token_hex(16)}),
        ):
            answers = [
                await http.post(path, json=request("tools/list"), headers=headers),
                await http.get(path, headers=headers),
                await http.delete(path, headers=headers),
            ]
            assert [answer.status_code for answer in answers] == [404] * 3
            assert answers[0].json()["error"]["code"] == -32001 and answers[0].json()["id"] == 1
    for connection, session in sessions.items():
        listing = asyncio.ensure_future(session.call("tools/list", id=connection))
        heard = await processes[connection].heard()
        # Nothing of what others tried has reached the process.
        assert (heard["method"], heard["id"]) == ("tools/list", connection)
        processes[connection].say({"jsonrpc": "2.0", "id": connection, "result": {"of": connection}})
        assert (await listing)["result"] == {"of": connection}


async def test_what_has_no_session_is_told_to_begin_with_a_handshake(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    path = path_of(broker.dtma.instance(script))
    for body in (request("tools/list"), {"jsonrpc": "2.0", "method": "notifications/initialized"}, [INITIALIZE]):
        answer = await http.post(path, json=body, headers=headers_of("c-1"))
        assert answer.status_code == 400 and "begin with initialize" in answer.json()["error"]["message"]
    ids: list[Any] = [None, True, [], {}]
    for id_ in ids:
        answer = await http.post(path, json={**INITIALIZE, "id": id_}, headers=headers_of("c-1"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32600)
    assert (await http.get(path, headers=headers_of("c-1"))).status_code == 400
    assert (await http.put(path, headers=headers_of("c-1"))).status_code == 405
    assert (await http.get("/instances/x/other", headers=headers_of("c-1"))).status_code == 404
    for body in (b"{", b"", b"\xff{}", b'{"jsonrpc":"2.0","id":1,"method":3}'):
        answer = await http.post(path, content=body, headers=headers_of("c-1"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32700)
    for owners in ({}, {"Mcp-Toolbox-Connection": ""}, {"Mcp-Toolbox-Connection": "c", "Mcp-Toolbox-Probe": "t"}):
        assert (await http.post(path, json=INITIALIZE, headers=owners)).status_code == 400
    assert not broker.dtma.sessions(path.split("/")[2])


@pytest.mark.parametrize(
    ("why", "seconds", "status", "after"),
    [
        (Refused.FULL, 2.5, 503, "3"),
        (Refused.STOPPED, None, 503, "5"),
        (Refused.FAILED, 0.0, 503, "1"),
        (Refused.UNKNOWN, None, 404, None),
    ],
)
async def test_who_gets_no_session_is_told_why_and_when_to_come_again(
    http: httpx.AsyncClient, broker: Broker, why: Refused, seconds: float | None, status: int, after: str | None
) -> None:
    refused = SessionRefused(request=0, why=why, message="All sessions are taken", retry_seconds=seconds)
    answer = await initialize(http, broker.dtma.instance(lambda _asked: refused))
    error = answer.json()["error"]
    assert (answer.status_code, answer.headers.get("Retry-After")) == (status, after)
    assert (answer.json()["id"], error["code"], error["message"]) == ("init", -32000, "All sessions are taken")
    assert error.get("data") == (None if seconds is None else {"retryAfterMs": max(int(seconds * 1000), 1)})
    assert "Mcp-Session-Id" not in answer.headers


async def test_a_deleted_session_is_over_for_all_who_wait_and_all_who_come_later(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    session, process = await opened(http, broker, script)
    async with session.streaming("GET") as events:
        running = asyncio.ensure_future(session.call("tools/list"))
        await process.heard()
        assert (await session.delete()).status_code == 204
        assert (await running)["error"] == {"code": -32000, "message": "The session was ended by its client"}
        assert await events.next() is None
    assert (await session.post(request("tools/list"))).status_code == 404
    assert (await session.delete()).status_code == 404
    (name,) = broker.dtma.sessions(session.instance)
    assert await broker.dtma.why_closed(name) is Closing.CLIENT
    await process.ended()


@pytest.mark.parametrize("why", [Ended.REVOKED, Ended.STOPPED, Ended.ENGINE])
async def test_what_dtma_ends_is_over_at_once(
    http: httpx.AsyncClient, broker: Broker, script: Script, why: Ended
) -> None:
    session, process = await opened(http, broker, script)
    running = asyncio.ensure_future(session.call("tools/list"))
    await process.heard()
    (name,) = broker.dtma.sessions(session.instance)
    broker.dtma.end(name, why, "The server was stopped")
    assert (await running)["error"] == {"code": -32000, "message": "The server was stopped"}
    assert (await session.post(request("tools/list"))).status_code == 404
    await process.ended()
    # DTMA has said so itself, and is not told: whatever was, was before the next session was asked for.
    await asyncio.gather(open_session(http, session.instance), script.initialized())
    assert name not in broker.dtma.closed


async def test_what_a_process_said_before_its_end_still_arrives(script: Script) -> None:
    # As long as its last words may take on a busy machine.
    async with inside(Patience(last_words=30.0)) as broker, unix_http(broker.path) as http:
        session, process = await opened(http, broker, script)
        answered = asyncio.ensure_future(session.call("tools/list", id=1))
        await process.heard()
        unanswered = asyncio.ensure_future(session.call("tools/list", id=2))
        await process.heard()
        (name,) = broker.dtma.sessions(session.instance)
        # The word of its end overtakes what it wrote.
        broker.dtma.end(name, Ended.EXITED, "The server's process has ended with code 3")
        process.say({"jsonrpc": "2.0", "id": 1, "result": {"x": "y" * 500_000}})
        process.end()
        assert len((await answered)["result"]["x"]) == 500_000
        assert (await unanswered)["error"]["message"] == "The server's process has ended with code 3"
        await asyncio.gather(open_session(http, session.instance), script.initialized())
        assert name not in broker.dtma.closed


async def test_a_session_in_which_nothing_is_said_is_ended(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script, idle_seconds=2.0)
    session, process = await asyncio.gather(open_session(http, instance), script.initialized())
    running = asyncio.ensure_future(session.call("tools/list"))
    await process.heard()
    (name,) = broker.dtma.sessions(instance)
    # A call that runs is no silence, however long it takes.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.6):
            await process.line()
    assert name not in broker.dtma.closed and not running.done()
    process.say({"jsonrpc": "2.0", "id": 1, "result": {}})
    await running
    async with session.streaming("GET") as events:
        # That somebody listens is none, and what nobody has to hear does not keep it alive.
        assert await events.next() is None
    assert await broker.dtma.why_closed(name) is Closing.IDLE
    await process.ended()


async def test_logs_for_nobody_do_not_keep_a_session_alive(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script, idle_seconds=1.0)
    _, process = await asyncio.gather(open_session(http, instance), script.initialized())
    (name,) = broker.dtma.sessions(instance)

    def closed() -> Closing | None:
        process.say({"jsonrpc": "2.0", "method": "notifications/message", "params": {}})
        return broker.dtma.closed.get(name)

    assert await until("ended although it talks", closed) is Closing.IDLE


async def test_a_server_that_refuses_the_handshake_has_no_session(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = asyncio.ensure_future(initialize(http, instance))
    process = await script.process()
    await process.heard()
    process.say({"jsonrpc": "2.0", "id": "init", "error": {"code": -32602, "message": "no"}})
    answer = await asked
    assert (answer.status_code, answer.json()["error"]["message"]) == (200, "no")
    assert "Mcp-Session-Id" not in answer.headers
    (name,) = broker.dtma.sessions(instance)
    assert await broker.dtma.why_closed(name) is Closing.CLIENT


async def test_a_client_that_hangs_up_in_the_handshake_leaves_no_process(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = asyncio.ensure_future(initialize(http, instance))
    process = await script.process()
    await process.heard()
    asked.cancel()
    await process.ended()
    (name,) = broker.dtma.sessions(instance)
    assert await broker.dtma.why_closed(name) is Closing.CLIENT


async def test_a_session_begins_once(http: httpx.AsyncClient, broker: Broker, script: Script) -> None:
    session, _ = await opened(http, broker, script)
    answer = await session.post(INITIALIZE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32600)


async def test_a_probe_shows_its_ticket_and_learns_what_the_process_complained_of(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    probe = {"Mcp-Toolbox-Probe": "ticket-1", "Accept": "application/json, text/event-stream"}
    for headers, complains in ((probe, True), (headers_of("c-1"), False)):
        asked = asyncio.ensure_future(http.post(path_of(instance), json=INITIALIZE, headers=headers))
        process = await script.process()
        assert (process.request.connection, process.request.ticket) == (("", "ticket-1") if complains else ("c-1", ""))
        await process.heard()
        process.write(b"Traceback\nKeyError: 'API_KEY'\n", errors=True)
        process.end()
        message = (await asked).json()["error"]["message"]
        # What is for admins is not for agents.
        assert message == "The server's process has ended" + (": KeyError: 'API_KEY'" if complains else "")


async def test_a_probe_has_a_session_of_its_own(http: httpx.AsyncClient, broker: Broker, script: Script) -> None:
    path = path_of(broker.dtma.instance(script))
    probe = {"Mcp-Toolbox-Probe": "ticket-1"}
    answer, process = await asyncio.gather(http.post(path, json=INITIALIZE, headers=probe), script.initialized())
    probe["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
    assert messages(answer)[0]["result"] == INITIALIZED
    for owner in ({"Mcp-Toolbox-Probe": "ticket-2"}, {"Mcp-Toolbox-Connection": "ticket-1"}):
        stolen = {**probe, **owner}
        if "Mcp-Toolbox-Connection" in owner:
            del stolen["Mcp-Toolbox-Probe"]
        assert (await http.delete(path, headers=stolen)).status_code == 404
    assert (await http.delete(path, headers=probe)).status_code == 204
    await process.ended()
