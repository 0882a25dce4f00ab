"""Streams go on where they broke off, for the session they belong to and for no other."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import pytest
from aiohttp import web

from support.gateway.event_store import MemoryEvents
from support.gateway.mcp_http import RawSession, call, messages, open_session, request
from support.gateway.mcp_servers import ScriptedServer, Seen, raw_answer, real_server
from support.gateway.scripted_dtma import new_key_ring
from support.gateway.threads import eventually
from support.gateway.world import Connection, World
from toolbox_dtma.link.messages import Change, KeyRing
from toolbox_dtma.wire import Expose, NameFilter

pytestmark = pytest.mark.component

STREAM = "text/event-stream"
IDS = re.compile(rb"^id: (\S+)$", re.MULTILINE)
TWO_EVENTS = b"id: 1\r\ndata:\r\n\r\nid:2\ndata: {}\n\n"


def ids_of(answer: httpx.Response) -> list[str]:
    return [found.decode() for found in IDS.findall(answer.content)]


@asynccontextmanager
async def fresh(gateway: World) -> AsyncGenerator[httpx.AsyncClient]:
    """A client with TCP connections of its own: the kernel chooses their worker anew."""
    async with httpx.AsyncClient(verify=gateway.tls.client_context(), timeout=15, trust_env=False) as client:
        yield client


def resuming(connection: Connection, event: str, session: str | None = None) -> dict[str, str]:
    more = {"Mcp-Session-Id": session} if session is not None else {}
    return {**connection.headers, "Accept": STREAM, "Last-Event-ID": event, **more}


async def test_the_server_is_given_its_own_id_back_and_never_the_client(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = raw_answer(TWO_EVENTS, STREAM)
    connection = gateway.connect(gateway.instance(script.port))
    post = await http.post(connection.url, json=request("ping"), headers=connection.headers)
    first, second = ids_of(post)
    assert first.startswith("me1.k1.") and second.startswith("me1.k1.") and first != second
    assert IDS.sub(b"", post.content) == b"\ndata:\n\n\ndata: {}\n\n"
    for event in (first, second):
        async with fresh(gateway) as other:
            get = await other.get(connection.url, headers=resuming(connection, event))
        assert (get.status_code, ids_of(get)) == (200, [first, second])
    assert [seen.all("Last-Event-ID") for seen in script.seen] == [[], ["1"], ["2"]]


async def test_a_request_that_is_no_resumption_carries_no_event_id_up(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.instance(script.port))
    headers = {**connection.headers, "Last-Event-ID": "7"}
    assert (await http.post(connection.url, json=request("ping"), headers=headers)).status_code == 202
    assert (await http.delete(connection.url, headers=headers)).status_code == 202
    assert (await http.get(connection.url, headers={**headers, "Last-Event-ID": ""})).status_code == 202
    assert [seen.all("Last-Event-ID") for seen in script.seen] == [[], [], []]


async def test_an_event_id_of_anyone_else_never_reaches_the_server(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    async def answer(_request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        (uid,) = seen.all("Mcp-Toolbox-Connection")
        session = seen.all("Mcp-Session-Id") or [f"s-{uid}-{len(script.seen)}"]
        return web.Response(body=TWO_EVENTS, headers={"Content-Type": STREAM, "Mcp-Session-Id": session[0]})

    script.answer = answer
    instance = gateway.instance(script.port)
    mine, theirs = gateway.connect(instance), gateway.connect(instance)

    async def opened(connection: Connection) -> tuple[str, str]:
        got = await http.post(connection.url, json=request("initialize"), headers=connection.headers)
        return got.headers["Mcp-Session-Id"], ids_of(got)[0]

    session, event = await opened(mine)
    other_session, other_event = await opened(mine)
    their_session, their_event = await opened(theirs)
    script.seen.clear()
    rows = {
        "the server's own id": (session, "1"),
        "an event of another session of the same connection": (session, other_event),
        "an event of another connection": (session, their_event),
        "my event within another session of mine": (other_session, event),
        "my event without its session": (None, event),
        "altered": (session, event[:-1] + ("A" if event[-1] != "A" else "B")),
        "a session id": (session, session),
    }
    for name, (within, named) in rows.items():
        got = await http.get(mine.url, headers=resuming(mine, named, within))
        assert (got.status_code, got.json()["error"]["code"]) == (400, -32600), name
    twice = [*resuming(mine, event, session).items(), ("Last-Event-ID", event)]
    assert (await http.get(mine.url, headers=twice)).status_code == 400
    stolen = await http.get(theirs.url, headers=resuming(theirs, event, session))
    assert stolen.status_code == 404, "the session decides first"
    assert script.seen == []
    assert (await http.get(mine.url, headers=resuming(mine, event, session))).status_code == 200
    assert (await http.get(theirs.url, headers=resuming(theirs, their_event, their_session))).status_code == 200


async def test_an_event_id_of_a_key_that_left_the_ring_is_refused(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = raw_answer(TWO_EVENTS, STREAM)
    connection = gateway.connect(gateway.instance(script.port))
    event = ids_of(await http.post(connection.url, json=request("ping"), headers=connection.headers))[0]
    old, new = gateway.dtma.keyring, new_key_ring("k2")
    try:
        gateway.dtma.apply(Change(keyring=KeyRing(signing="k2", keys=(*old.keys, *new.keys))))
        got = await http.get(connection.url, headers=resuming(connection, event))
        assert got.status_code == 200 and all(each.startswith("me1.k2.") for each in ids_of(got))
        gateway.dtma.apply(Change(keyring=new))
        assert (await http.get(connection.url, headers=resuming(connection, event))).status_code == 400
    finally:
        gateway.dtma.apply(Change(keyring=old))


async def test_events_of_a_restricted_connection_carry_ids_and_are_filtered_when_replayed(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    listing = b'id: 5\ndata: {"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a"},{"name":"b"}]}}\n\n'
    script.answer = raw_answer(listing, STREAM)
    expose = Expose(tools=NameFilter(allow=("a",)))
    connection = gateway.connect(gateway.instance(script.port), expose=expose)
    for answer in (
        await http.post(connection.url, json=request("tools/list"), headers=connection.headers),
        await http.get(connection.url, headers=connection.headers),
    ):
        (event,) = ids_of(answer)
        assert messages(answer)[0]["result"]["tools"] == [{"name": "a"}]
        replayed = await http.get(connection.url, headers=resuming(connection, event))
        assert messages(replayed)[0]["result"]["tools"] == [{"name": "a"}]
    assert script.seen[-1].all("Last-Event-ID") == ["5"]


async def test_a_call_that_broke_off_is_taken_up_again_on_any_worker(gateway: World, http: httpx.AsyncClient) -> None:
    with real_server(events=MemoryEvents()) as server:
        session = await open_session(http, gateway.connect(gateway.instance(server.port)))
        connection = session.connection
        params = {"name": "wait_long", "arguments": {"seconds": 0.5}, "_meta": {"progressToken": "p"}}
        body = json.dumps(request("tools/call", params, "c")).encode()

        async def read(method: str, headers: dict[str, str], until: bytes) -> bytes:
            """What comes on a connection of its own, up to a certain text or the end."""
            got = b""
            async with (
                fresh(gateway) as client,
                client.stream(
                    method, connection.url, content=body if method == "POST" else None, headers=headers
                ) as answer,
            ):
                assert answer.status_code == 200
                async for chunk in answer.aiter_bytes():
                    got += chunk
                    if until in got:
                        break
            return got

        got = await read("POST", session.headers, b'"progress":1')
        async with asyncio.timeout(20):
            while b'"id":"c"' not in got:
                # As long as the call itself runs on, a resumed stream ends with what there is so far.
                last = IDS.findall(got)[-1].decode()
                got += await read("GET", resuming(connection, last, session.id), b'"id":"c"')
        assert re.search(rb'"result":\{.*"text":"waited"', got) and b'"progress":9' in got
        numbers = [int(number) for number in re.findall(rb'"progress":(\d+)', got)]
        assert numbers == list(range(10)), "each once, in order"


@pytest.mark.parametrize("seed", range(3))
async def test_every_byte_of_hundreds_of_sessions_reaches_its_owner(
    gateway: World, script: ScriptedServer, seed: int
) -> None:
    """The server would replay any event to anybody who names it."""
    chance = random.Random(seed)
    log: list[tuple[str, bytes]] = []

    def event_of(owner: str, what: str) -> bytes:
        log.append((owner, what.encode()))
        return f"id: {len(log)}\ndata: {owner} {what}\n\n".encode()

    async def answer(incoming: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        (uid,) = seen.all("Mcp-Toolbox-Connection")
        session = (seen.all("Mcp-Session-Id") or [f"{uid}/{len(log)}"])[0]
        named = seen.all("Last-Event-ID")
        if named:
            body = b"".join(
                f"id: {number}\ndata: {owner} ".encode() + what + b"\n\n"
                for number, (owner, what) in enumerate(log[int(named[0]) :], int(named[0]) + 1)
                if owner == log[int(named[0]) - 1][0]
            )
        else:
            body = event_of(session, "one") + event_of(session, "two")
        response = web.StreamResponse(headers={"Content-Type": STREAM, "Mcp-Session-Id": session})
        await response.prepare(incoming)
        while body:
            size = chance.randint(1, 40)
            await response.write(body[:size])
            body = body[size:]
        return response

    script.answer = answer
    instance = gateway.instance(script.port)
    connections = [gateway.connect(instance) for _ in range(20)]
    owners: dict[str, str] = {}
    events: dict[str, list[str]] = {}

    def check(session: RawSession, got: httpx.Response) -> None:
        assert got.status_code == 200, got.text
        data = [line[6:] for line in got.text.splitlines() if line.startswith("data: ")]
        owner = owners.setdefault(session.id, data[0].split()[0] if data else "")
        assert owner.split("/")[0] == session.connection.uid
        assert {line.split()[0] for line in data} <= {owner}
        events.setdefault(session.id, []).extend(ids_of(got))

    async def one(client: httpx.AsyncClient, session: RawSession, others: list[RawSession]) -> None:
        for _ in range(4):
            if chance.random() < 0.4:
                check(session, await session.post(call("x")))
            elif chance.random() < 0.6:
                event = chance.choice(events[session.id])
                headers = resuming(session.connection, event, session.id)
                check(session, await client.get(session.connection.url, headers=headers))
            else:
                thief = chance.choice(others)
                event = chance.choice(events[session.id])
                headers = resuming(thief.connection, event, thief.id)
                got = await client.get(thief.connection.url, headers=headers)
                assert got.status_code == (200 if thief.id == session.id else 400), got.text

    async with fresh(gateway) as client:

        async def opened(connection: Connection) -> RawSession:
            got = await client.post(connection.url, json=request("initialize"), headers=connection.headers)
            session = RawSession(client, connection, got.headers["Mcp-Session-Id"])
            check(session, got)
            return session

        sessions = [await opened(connection) for connection in connections for _ in range(10)]
        async with asyncio.TaskGroup() as group:
            for session in sessions:
                group.create_task(one(client, session, sessions))
    assert len(set(owners.values())) == len(sessions) == 200
    eventually(lambda: script.open == 0, "all answers are over")
