"""Processes that write what they must not, too much of it, or nothing; and clients that do not read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from support.broker.client import RawSession, headers_of, initialize, open_session, path_of, unix_http
from support.broker.inside import inside
from support.broker.programs import Script, Scripted, frame
from support.broker.world import Broker
from support.gateway.mcp_http import messages, request
from toolbox_dtma.broker.budget import Budget
from toolbox_dtma.broker.framing import MAX_LINE_BYTES
from toolbox_dtma.broker.routing import MAX_RUNNING
from toolbox_dtma.broker.session import Patience
from toolbox_dtma.link.broker import Closing

pytestmark = pytest.mark.component

MEBIBYTE = 1 << 20
DENSE = 780_000
"""Elements of a message that takes seconds to be read."""


async def opened(http: httpx.AsyncClient, broker: Broker, script: Script) -> tuple[RawSession, Scripted]:
    """A session and its process, of a new instance."""
    session, process = await asyncio.gather(open_session(http, broker.dtma.instance(script)), script.initialized())
    return session, process


def result_of(size: int, id: Any = 1) -> bytes:
    """An answer whose line has so many bytes, its end left out."""
    begin, end = b'{"jsonrpc":"2.0","id":%b,"result":{"x":"' % json.dumps(id).encode(), b'"}}'
    return begin + b"y" * (size - len(begin) - len(end)) + end


async def test_a_line_may_have_4_mib_and_arrives_whole(http: httpx.AsyncClient, broker: Broker, script: Script) -> None:
    session, process = await opened(http, broker, script)
    call = asyncio.ensure_future(session.post(request("tools/list", id=1)))
    await process.heard()
    largest = result_of(MAX_LINE_BYTES)
    process.write(largest + b"\n")
    assert (await call).content == largest


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (frame(result_of(MAX_LINE_BYTES + 1) + b"\n"), "a line of more than 4194304 bytes"),
        (frame(b"x" * (MAX_LINE_BYTES + 1)), "a line of more than 4194304 bytes"),
        (frame(b"Listening on port 80\n"), "what is no message to its standard output: not JSON at byte 0"),
        (frame(b'{"jsonrpc":"2.0","id":1,"result":{}\n'), "what is no message"),
        (frame(b"7\n"), "a message must be an object"),
        (frame(b"[" * MEBIBYTE + b"\n"), "nested deeper than"),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", "not the header of a frame"),
    ],
    ids=["long line", "endless line", "log", "cut", "number", "deep", "unframed"],
)
async def test_a_process_that_writes_no_messages_is_ended_and_whoever_waits_is_told_why(
    http: httpx.AsyncClient, broker: Broker, script: Script, written: bytes, message: str
) -> None:
    session, process = await opened(http, broker, script)
    calls = [asyncio.ensure_future(session.call("tools/list", id=id)) for id in (1, 2)]
    for _ in calls:
        await process.heard()
    process.send(written)
    for call in calls:
        error = (await call)["error"]
        assert error["code"] == -32000 and message in error["message"] and len(error["message"]) < 200
    (name,) = broker.dtma.sessions(session.instance)
    assert await broker.dtma.why_closed(name) is Closing.PROTOCOL
    assert (await session.post(request("ping"))).status_code == 404


async def test_blank_lines_and_standard_error_are_no_messages(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    session, process = await opened(http, broker, script)
    call = asyncio.ensure_future(session.call("tools/list", id=1))
    await process.heard()
    process.write(b"\n  \r\n")
    for _ in range(100):
        process.write(b"not a message, and without an end " * 1000, errors=True)
    process.write(b'{"jsonrpc":"2.0",')
    process.write(b"in between\n", errors=True)
    process.write(b'"id":1,"result":{}}\r\n\n')
    assert (await call)["result"] == {}


async def test_a_client_that_does_not_read_holds_its_process_up_and_no_other(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    slow, writing = await opened(http, broker, script)
    other, process = await opened(http, broker, script)
    before = broker.memory
    pieces, size = 64, 512 * 1024
    async with slow.streaming("GET") as events:
        for n in range(pieces):
            writing.say({"jsonrpc": "2.0", "method": "notifications/message", "params": {"n": n, "x": "y" * size}})
        for id_ in range(200):
            call = asyncio.ensure_future(other.call("ping", id=id_))
            process.say({"jsonrpc": "2.0", "id": (await process.heard())["id"], "result": {}})
            await call
        # Others were answered 200 times, and still most of it has not been taken.
        assert writing.unsent > pieces * size * 3 // 4
        assert broker.memory - before < 16 * MEBIBYTE
        seen = [(await events.next())["params"] for _ in range(pieces)]
        assert [each["n"] for each in seen] == list(range(pieces)) and {len(each["x"]) for each in seen} == {size}
        await writing.until_sent()
        assert not writing.unsent or writing.unsent < size


async def test_a_client_that_hangs_up_without_having_read_holds_nothing_up(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    session, process = await opened(http, broker, script)
    async with session.streaming("GET"):
        for _ in range(32):
            process.say({"jsonrpc": "2.0", "method": "notifications/message", "params": {"x": "y" * 512 * 1024}})
    call = asyncio.ensure_future(session.post(request("ping", id=1)))
    assert (await process.heard())["method"] == "ping"
    process.say({"jsonrpc": "2.0", "id": 1, "result": {}})
    assert messages(await call)[-1]["result"] == {}


async def test_a_process_that_takes_no_input_makes_requests_wait_and_then_fail(script: Script) -> None:
    async with inside(Patience(input=0.5)) as broker, unix_http(broker.path) as http:
        instance = broker.dtma.instance(script)
        session, process = await asyncio.gather(open_session(http, instance), script.initialized())
        process.pause()
        large = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"x": "y" * MEBIBYTE}}
        statuses: list[int] = []
        while 504 not in statuses and len(statuses) < 100:
            statuses.append((await session.post(large)).status_code)
        assert set(statuses) == {202, 504}
        refused = await session.post(request("tools/list", id=1))
        assert (refused.status_code, refused.json()["id"]) == (504, 1)
        assert refused.json()["error"]["message"] == "The server's process takes no input"
        process.resume()
        for _ in range(statuses.count(202)):
            assert await process.heard() == large
        # What was refused has not reached it, and its id is free.
        call = asyncio.ensure_future(session.call("tools/list", id=1))
        assert await process.heard() == request("tools/list", id=1)
        process.say({"jsonrpc": "2.0", "id": 1, "result": {}})
        assert (await call)["result"] == {}


async def test_a_handshake_that_is_never_answered_ends(script: Script) -> None:
    async with inside(Patience(handshake=0.2)) as broker, unix_http(broker.path) as http:
        instance = broker.dtma.instance(script)
        answer = await initialize(http, instance)
        assert answer.status_code == 200
        assert answer.json()["error"] == {"code": -32000, "message": "The server did not answer within 0.2 s"}
        await (await script.process()).ended()
        (name,) = broker.dtma.sessions(instance)
        assert await broker.dtma.why_closed(name) is Closing.CLIENT


async def test_when_all_sessions_hold_too_much_the_greedy_one_is_ended(script: Script) -> None:
    async with inside(budget=Budget(2 * MEBIBYTE)) as broker, unix_http(broker.path) as http:
        instance = broker.dtma.instance(script)
        sessions = [await asyncio.gather(open_session(http, instance), script.initialized()) for _ in range(2)]
        (modest, one), (greedy, two) = sessions
        one.write(b'{"jsonrpc":"2.0","method":"' + b"x" * (MEBIBYTE // 2))
        call = asyncio.ensure_future(greedy.call("ping", id=1))
        await two.heard()
        two.write(b'{"jsonrpc":"2.0","method":"' + b"x" * 3 * MEBIBYTE)
        assert (await call)["error"]["message"] == "The server wrote more than can be held for it now"
        one.write(b'"}\n')
        ping = asyncio.ensure_future(modest.post(request("ping", id=1)))
        await one.heard()
        one.say({"jsonrpc": "2.0", "id": 1, "result": {}})
        # First the message that was held in part.
        first, last = messages(await ping)
        assert len(first["method"]) == MEBIBYTE // 2 and last["result"] == {}


async def test_requests_that_are_never_answered_are_bounded(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    session, process = await opened(http, broker, script)
    batches = [[request("ping", id=f"{n}.{i}") for i in range(128)] for n in range(MAX_RUNNING // 128)]
    calls = [asyncio.ensure_future(session.post(batch)) for batch in batches]
    for _ in range(MAX_RUNNING):
        await process.heard()
    answer = await session.post(request("ping", id=1))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    process.end()
    for call in calls:
        answers = messages(await call)
        assert len(answers) == 128 and {each["error"]["code"] for each in answers} == {-32000}


async def test_a_body_whose_framing_breaks_is_refused(broker: Broker, script: Script) -> None:
    path = path_of(broker.dtma.instance(script))
    reader, writer = await asyncio.open_unix_connection(broker.path)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nMcp-Toolbox-Connection: c\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode() + b"2\r\n{}\r\nno size\r\n")
    async with asyncio.timeout(10):
        answer = await reader.read()
    assert b" 400 " in answer.splitlines()[0] and b"not well-formed" in answer and b"no size" not in answer
    writer.close()
    await writer.wait_closed()


async def test_a_body_that_is_too_large_is_refused(http: httpx.AsyncClient, broker: Broker, script: Script) -> None:
    path = path_of(broker.dtma.instance(script))
    answer = await http.post(path, content=b" " * (4 * MEBIBYTE + 1), headers=headers_of("c-1"))
    assert answer.status_code == 413


async def test_a_small_message_does_not_wait_for_a_huge_one_of_another_session(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    session, process = await opened(http, broker, script)
    other, busy = await opened(http, broker, script)
    call = asyncio.ensure_future(other.call("ping", id=1))
    await busy.heard()
    # Dense: a decoder would take the whole process for a tenth of a second.
    dense = b'{"jsonrpc":"2.0","id":1,"result":[' + b",".join([b"[[]]"] * DENSE) + b"]}\n"
    busy.write(dense)
    quick = asyncio.ensure_future(session.call("ping", id=1))
    await process.heard()
    process.say({"jsonrpc": "2.0", "id": 1, "result": {}})
    assert (await quick)["result"] == {}
    assert not call.done()
    assert len((await call)["result"]) == DENSE
