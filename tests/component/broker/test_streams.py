"""What reaches whom within one session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from support.broker.client import RawSession, initialize, open_session, unix_http
from support.broker.inside import inside
from support.broker.programs import Script, Scripted
from support.broker.world import Broker
from support.gateway.mcp_http import INITIALIZE, messages, request
from toolbox_dtma.broker.routing import MAX_KEPT, MAX_LISTENERS
from toolbox_dtma.broker.session import Patience

pytestmark = pytest.mark.component

Opened = tuple[RawSession, Scripted]


def result(id: Any, **members: Any) -> dict[str, Any]:
    """An answer."""
    return {"jsonrpc": "2.0", "id": id, "result": members}


def note(method: str, **params: Any) -> dict[str, Any]:
    """A notification."""
    return {"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params}


@pytest.fixture
async def opened(http: httpx.AsyncClient, broker: Broker, script: Script) -> AsyncGenerator[Opened]:
    """A session and its process."""
    instance = broker.dtma.instance(script)
    session, process = await asyncio.gather(open_session(http, instance), script.initialized())
    yield session, process
    await session.delete()


async def test_answers_find_the_requests_they_belong_to_in_any_order(opened: Opened) -> None:
    session, process = opened
    ids: list[Any] = [1, "1", 2, "a", 1.5, -3]
    calls = [asyncio.ensure_future(session.call("tools/call", {"n": n}, id)) for n, id in enumerate(ids)]
    heard = [await process.heard() for _ in ids]
    process.say(*(result(each["id"], n=each["params"]["n"]) for each in reversed(heard)))
    for n, (id_, call) in enumerate(zip(ids, calls, strict=True)):
        assert await call == result(id_, n=n)


async def test_an_answer_that_comes_first_is_one_document_and_else_the_end_of_a_stream(opened: Opened) -> None:
    session, process = opened
    plain = asyncio.ensure_future(session.post(request("tools/list", id=1)))
    await process.heard()
    process.say(result(1))
    assert (await plain).headers["Content-Type"] == "application/json" and (await plain).json() == result(1)
    meta = {"_meta": {"progressToken": "t"}}
    streamed = asyncio.ensure_future(session.post(request("tools/call", meta, 2)))
    assert (await process.heard())["params"] == meta
    steps = [note("progress", progressToken="t", progress=step) for step in range(3)]
    process.say(*steps, result(2))
    answer = await streamed
    assert answer.headers["Content-Type"] == "text/event-stream" and b"id:" not in answer.content
    assert messages(answer) == [*steps, result(2)]


async def test_progress_follows_its_token_and_not_the_order_or_the_listener(opened: Opened) -> None:
    session, process = opened
    async with session.streaming("GET") as events:
        calls = {
            token: asyncio.ensure_future(session.post(request("tools/call", {"_meta": {"progressToken": token}}, n)))
            for n, token in enumerate(("a", 7, "7"))
        }
        heard = [await process.heard() for _ in calls]
        process.say(*(note("progress", progressToken=token, progress=1) for token in ("7", 7, "a", "unknown")))
        process.say(*(result(each["id"]) for each in heard))
        for n, (token, call) in enumerate(calls.items()):
            assert messages(await call) == [note("progress", progressToken=token, progress=1), result(n)]
        assert (await events.next())["params"]["progressToken"] == "unknown"


async def test_what_the_server_asks_goes_to_the_listener_and_its_answer_comes_back(opened: Opened) -> None:
    session, process = opened
    async with session.streaming("GET") as events:
        calling = asyncio.ensure_future(session.post(request("tools/call", id=1)))
        await process.heard()
        # The server's ids are its own affair, also where they equal a client's.
        asks: list[dict[str, Any]] = [
            {"jsonrpc": "2.0", "id": 1, "method": "sampling/createMessage", "params": {}},
            {"jsonrpc": "2.0", "id": "e", "method": "elicitation/create", "params": {}},
        ]
        process.say(*asks, note("tools/list_changed"))
        assert [await events.next() for _ in range(3)] == [*asks, note("tools/list_changed")]
        for id_ in (1, "e"):
            sent = await session.post(result(id_, by="client"))
            assert (sent.status_code, sent.content) == (202, b"")
            assert await process.heard() == result(id_, by="client")
        process.say(result(1, by="server"))
        assert messages(await calling) == [result(1, by="server")]


async def test_without_a_listener_the_oldest_call_gets_what_belongs_to_none(opened: Opened) -> None:
    session, process = opened
    first, second = (asyncio.ensure_future(session.post(request("tools/call", id=id))) for id in (1, 2))
    heard = [await process.heard() for _ in range(2)]
    process.say(note("message", data="x"), result(heard[1]["id"]), result(heard[0]["id"]))
    answers = {messages(answer)[-1]["id"]: messages(answer) for answer in (await first, await second)}
    assert answers[heard[0]["id"]] == [note("message", data="x"), result(heard[0]["id"])]
    assert answers[heard[1]["id"]] == [result(heard[1]["id"])]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_is_said_to_nobody_waits_for_a_stream_and_the_oldest_are_dropped(
    opened: Opened, method: str
) -> None:
    session, process = opened
    logs = [note("message", n=n) for n in range(MAX_KEPT + 5)]
    process.say(*logs)
    # The answer of a later request says that all before it was read.
    call = asyncio.ensure_future(session.post(note("roots/list_changed")))
    await process.heard()
    await call
    await process.until_sent()
    if method == "GET":
        async with session.streaming("GET") as events:
            first = await events.next()
            process.say(note("message", n="end"))
            seen = [first]
            while seen[-1]["params"]["n"] != "end":
                seen.append(await events.next())
    else:
        call = asyncio.ensure_future(session.post(request("tools/list", id=1)))
        await process.heard()
        process.say(note("message", n="end"), result(1))
        *seen, last = messages(await call)
        assert last == result(1)
    numbers = [each["params"]["n"] for each in seen]
    begin = numbers[0]
    # Whatever was read before the stream came is in order and without a gap.
    assert numbers == [*range(begin, MAX_KEPT + 5), "end"] and begin <= 5


async def test_the_newest_listener_gets_everything_and_an_older_one_takes_over(opened: Opened) -> None:
    session, process = opened
    async with session.streaming("GET") as old:
        async with session.streaming("GET") as new:
            process.say(note("message", n=1))
            assert await new.next() == note("message", n=1)

        async def said(n: int) -> None:
            process.say(note("message", n=n))

        # The broker learns of the hang-up at some moment after it.
        received = asyncio.ensure_future(old.next())
        numbers = iter(range(2, 1000))
        while not received.done():
            await said(next(numbers))
            await asyncio.wait({received}, timeout=0.02)
        assert (await received)["params"]["n"] >= 2


async def test_listeners_are_bounded(opened: Opened) -> None:
    session, _ = opened
    streams = [session.streaming("GET") for _ in range(MAX_LISTENERS)]
    for stream in streams:
        await stream.__aenter__()
    answer = await session.http.get(f"/instances/{session.instance}/mcp", headers=session.headers)
    assert answer.status_code == 409
    for stream in reversed(streams):
        await stream.__aexit__(None, None, None)


async def test_a_hang_up_is_no_cancellation_and_the_answer_is_dropped(opened: Opened) -> None:
    session, process = opened
    call = asyncio.ensure_future(session.post(request("tools/call", {"_meta": {"progressToken": "t"}}, 1)))
    await process.heard()
    call.cancel()

    async def again() -> httpx.Response:
        return await session.post(request("tools/call", id=1))

    # While it runs, its id is taken.
    answer = await again()
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32600)
    process.say(note("progress", progressToken="t", progress=1), result(1, old=True))
    other = asyncio.ensure_future(session.call("ping", id=2))
    # Nothing was said to the process meanwhile, a cancellation least of all.
    assert await process.heard() == request("ping", id=2)
    process.say(result(2))
    assert await other == result(2)
    call = asyncio.ensure_future(again())
    assert (await process.heard())["id"] == 1
    process.say(result(1, new=True))
    assert messages(await call) == [result(1, new=True)]


async def test_the_messages_of_a_batch_are_written_one_a_line_and_answered_in_one_stream(opened: Opened) -> None:
    session, process = opened
    batch = [request("ping", id=1), note("message", n=1), request("ping", id="1")]
    call = asyncio.ensure_future(session.post(batch))
    assert [await process.heard() for _ in batch] == batch
    process.say([result("1"), note("message", n=2)], result(1))
    answer = await call
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert messages(answer) == [result("1"), note("message", n=2), result(1)]
    quiet = await session.post([note("message", n=3), result(9)])
    assert (quiet.status_code, quiet.content) == (202, b"")
    assert [await process.heard() for _ in range(2)] == [note("message", n=3), result(9)]


async def test_batches_are_of_one_revision_only(opened: Opened) -> None:
    session, _ = opened
    for version, status in (("2025-03-26", 202), ("2025-06-18", 400), ("2025-11-25", 400)):
        answer = await session.post([note("message")], **{"MCP-Protocol-Version": version})
        assert answer.status_code == status
    assert (await session.post([request("ping", id=1), request("ping", id=1)])).status_code == 400
    assert (await session.post([request("ping", id=1), INITIALIZE])).status_code == 400
    assert (await session.post(request("ping", id=None))).status_code == 400


async def test_what_is_said_before_the_handshake_is_done_waits_until_after_it(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = asyncio.ensure_future(initialize(http, instance))
    process = await script.process()
    await process.heard()
    process.say(note("message", early=True), result("init"))
    answer = await asked
    assert answer.json() == result("init")
    session = RawSession(http, instance, "c-1", answer.headers["Mcp-Session-Id"])
    async with session.streaming("GET") as events:
        assert await events.next() == note("message", early=True)


async def test_a_cancelled_request_is_answered_by_the_broker_if_the_server_does_not(script: Script) -> None:
    async with inside(Patience(cancelled=1.0)) as broker, unix_http(broker.path) as http:
        instance = broker.dtma.instance(script)
        session, process = await asyncio.gather(open_session(http, instance), script.initialized())
        calls = {id: asyncio.ensure_future(session.call("tools/call", id=id)) for id in (1, 2, 3)}
        for _ in calls:
            await process.heard()
        for id_ in (1, 99, 2):
            assert (await session.post(note("cancelled", requestId=id_))).status_code == 202
            assert (await process.heard())["params"] == {"requestId": id_}
        process.say({"jsonrpc": "2.0", "id": 2, "error": {"code": 0, "message": "Request cancelled"}})
        assert (await calls[1])["error"] == {"code": -32000, "message": "The request was cancelled"}
        assert (await calls[2])["error"]["message"] == "Request cancelled"
        assert not calls[3].done()
        process.say(result(1, late=True), result(3))
        assert await calls[3] == result(3)
