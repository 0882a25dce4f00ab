"""Requests without a session: what reaches the process they share, and what comes back to each of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from support.async_poll import until
from support.broker.client import Events, headers_of, path_of
from support.broker.programs import Script, Scripted
from support.broker.stateless import (
    LISTEN,
    META,
    SUBSCRIPTION,
    asking,
    begun,
    calling,
    changed,
    note,
    post,
    progress,
    result,
    served,
    stateless_headers,
    stateless_process,
    streaming,
    streaming_listen,
)
from support.broker.world import Broker
from support.gateway.mcp_http import INITIALIZE, MODERN, messages, request
from toolbox_dtma.broker.routing import MAX_RUNNING

pytestmark = pytest.mark.component


async def test_a_request_reaches_the_process_with_another_id_and_its_answer_comes_back_with_its_own(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    meta = json.dumps({**META, "progressToken": "TOKEN"}, separators=(", ", " : ")).replace('"TOKEN"', '"t\\u0031"')
    body = f'{{ "params":{{"_meta":{meta},"x":1.50}}, "id":"\\u0061",\r\n"method":"x/y" ,"jsonrpc":"2.0"}}'
    asked = asyncio.ensure_future(post(http, instance, body.encode()))
    process = await stateless_process(script)
    line = await process.line()
    number = json.loads(line)["id"]
    expected = body.replace('"\\u0061"', str(number)).replace('"t\\u0031"', str(number)).replace("\r\n", "  ")
    assert line.decode() == expected + "\n"
    assert (process.request.connection, process.request.ticket) == ("c-1", "")
    process.write(b'{"result" : {"n":1.50},"id": %d , "jsonrpc":"2.0"}\r\n' % number)
    answer = await asked
    assert answer.content == b'{"result" : {"n":1.50},"id": "\\u0061" , "jsonrpc":"2.0"} '
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    assert "Mcp-Session-Id" not in answer.headers


async def test_equal_ids_and_tokens_at_the_same_time_do_not_mix(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    running = await begun(http, instance, process, *(calling(1, "t") for _ in range(5)))
    assert len({heard["id"] for _, heard in running}) == 5
    for step in range(2):
        process.say(*(progress(heard["params"]["_meta"]["progressToken"], step) for _, heard in running))
    process.say(*(result(heard["id"], of=n) for n, (_, heard) in reversed(list(enumerate(running)))))
    for n, (asked, _) in enumerate(running):
        answer = await asked
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert messages(answer) == [progress("t", 0), progress("t", 1), result(1, of=n)]


async def test_what_names_no_request_reaches_nobody(http: httpx.AsyncClient, broker: Broker, script: Script) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    ((asked, heard),) = await begun(http, instance, process, calling(1))
    async with streaming_listen(http, instance, process, 1) as (events, listening):
        process.say(
            note("message", level="info", data="whose?"),
            note("tools/list_changed"),
            {"jsonrpc": "2.0", "id": 5, "method": "sampling/createMessage", "params": {}},
            progress(heard["id"], 1),
            progress("t", 1),
            result(str(heard["id"])),
            result(12345),
            changed(heard["id"]),
            changed(listening),
            result(heard["id"], ok=True),
        )
        assert await events.next() == changed(1)
        assert (await asked).json() == result(1, ok=True)


async def test_a_hang_up_is_the_cancellation_of_that_request_alone(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    (leaves, gone), (stays, other) = await begun(http, instance, process, calling(1), calling(1))
    leaves.cancel()
    told = await process.heard()
    assert told["method"] == "notifications/cancelled" and told["params"]["requestId"] == gone["id"]
    # An answer that comes all the same is nobody's.
    process.say(result(gone["id"], late=True), result(other["id"], mine=True))
    assert (await stays).json() == result(1, mine=True)


async def test_a_hang_up_in_the_middle_of_a_stream_is_one_too(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    async with streaming_after(http, instance, process) as (events, number):
        assert await events.next() == progress("t", 1)
    told = await process.heard()
    assert (told["method"], told["params"]["requestId"]) == ("notifications/cancelled", number)
    process.say(progress(number, 2), result(number))
    ((asked, heard),) = await begun(http, instance, process, calling(1))
    process.say(result(heard["id"]))
    assert (await asked).json() == result(1)


@asynccontextmanager
async def streaming_after(
    http: httpx.AsyncClient, instance: str, process: Scripted
) -> AsyncGenerator[tuple[Events, int]]:
    """A call whose process has reported progress."""

    async def begins() -> int:
        number = (await process.heard())["id"]
        process.say(progress(number, 1))
        return number

    number = asyncio.ensure_future(begins())
    async with streaming(http, instance, calling(1, "t")) as events:
        yield events, await number


async def test_a_client_cannot_cancel_by_an_id_that_others_may_use_too(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    ((asked, heard),) = await begun(http, instance, process, calling(1))
    for body in (note("cancelled", requestId=1), progress(1, 1), note("some/extension", x=1)):
        answer = await post(http, instance, body)
        assert (answer.status_code, answer.content) == (202, b"")
    # Only what names no request is passed on.
    assert await process.heard() == note("some/extension", x=1)
    process.say(result(heard["id"]))
    assert (await asked).status_code == 200


async def test_a_notification_starts_nothing(http: httpx.AsyncClient, broker: Broker, script: Script) -> None:
    instance = broker.dtma.instance(script)
    assert (await post(http, instance, note("some/extension"))).status_code == 202
    assert not broker.dtma.sessions(instance)


async def test_who_listens_hears_what_belongs_to_the_own_subscription(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    async with streaming_listen(http, instance, process, "a") as (one, first):
        async with streaming_listen(http, instance, process, "a") as (two, second):
            process.say(changed(second), changed(first, "resources/updated"), changed(first))
            assert await two.next() == changed("a")
            assert [await one.next() for _ in range(2)] == [changed("a", "resources/updated"), changed("a")]
            process.say({"jsonrpc": "2.0", "id": second, "result": {"_meta": {SUBSCRIPTION: second}}})
            assert await two.next() == {"jsonrpc": "2.0", "id": "a", "result": {"_meta": {SUBSCRIPTION: "a"}}}
            assert await two.next() is None
        process.say(changed(second), changed(first))
        assert await one.next() == changed("a")
    told = await process.heard()
    assert (told["method"], told["params"]["requestId"]) == ("notifications/cancelled", first)


async def test_a_server_ends_a_subscription_by_cancelling_it(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    async with streaming_listen(http, instance, process, "a") as (events, number):
        process.say(note("cancelled", requestId=number))
        assert await events.next() is None
    ((asked, heard),) = await begun(http, instance, process, asking(LISTEN, "b"))
    process.say(note("cancelled", requestId=heard["id"]))
    answer = (await asked).json()
    assert answer["id"] == "b" and "without an answer" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("code", "status"), [(-32601, 404), (-32602, 400), (-32022, 400), (-32021, 400), (-32603, 200), (-32000, 200)]
)
async def test_an_error_has_the_status_that_the_revision_gives_it(
    http: httpx.AsyncClient, broker: Broker, script: Script, code: int, status: int
) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    ((asked, heard),) = await begun(http, instance, process, calling("é"))
    error = {"code": code, "message": "no", "data": {"supported": [MODERN]}}
    process.say({"jsonrpc": "2.0", "id": heard["id"], "error": error})
    answer = await asked
    assert (answer.status_code, answer.json()) == (status, {"jsonrpc": "2.0", "id": "é", "error": error})


async def test_an_error_after_something_else_is_the_end_of_a_good_stream(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    ((asked, heard),) = await begun(http, instance, process, calling(1, "t"))
    error = {"jsonrpc": "2.0", "error": {"code": -32602, "message": "no"}}
    process.say(progress(heard["id"], 1), {**error, "id": heard["id"]})
    answer = await asked
    assert answer.status_code == 200 and messages(answer) == [progress("t", 1), {**error, "id": 1}]


async def test_what_is_no_request_of_this_revision_is_refused_and_starts_nothing(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    bare = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    rows: list[tuple[Any, int, int]] = [
        (b"{", 400, -32700),
        (b"\xff{}", 400, -32700),
        ([asking("tools/list")], 400, -32600),
        (result(1), 400, -32600),
        ({**bare, "id": None}, 400, -32600),
        ({**asking("tools/list"), "id": True}, 400, -32600),
        (asking("tools/list", "x" * 2000), 400, -32600),
        (asking("tools/list", 1, "x" * 2000), 400, -32600),
        (asking("tools/list", 1, [7]), 400, -32602),
        (bare, 400, -32602),
        ({**bare, "params": {"_meta": {**META, "io.modelcontextprotocol/protocolVersion": "2031-01-01"}}}, 400, -32020),
        (b'{"id":1,"id":1,"method":"x"}', 400, -32600),
        ({**INITIALIZE, "params": {**INITIALIZE["params"], "_meta": META}}, 404, -32601),
    ]
    for body, status, code in rows:
        answer = await post(http, instance, body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), body
    for method in ("GET", "DELETE", "PUT"):
        answer = await http.request(method, path_of(instance), headers=stateless_headers())
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    two = [*stateless_headers().items(), ("MCP-Protocol-Version", "2025-11-25")]
    assert (await http.post(path_of(instance), headers=two, json=asking("x"))).status_code == 400
    assert not broker.dtma.sessions(instance)


async def test_what_waits_for_an_answer_is_bounded(http: httpx.AsyncClient, broker: Broker, script: Script) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    running = [asyncio.ensure_future(post(http, instance, calling(n))) for n in range(MAX_RUNNING)]
    heard = [await process.heard() for _ in running]
    answer = await post(http, instance, calling("more"))
    assert (answer.status_code, answer.json()["id"]) == (503, "more")
    process.say(*(result(each["id"]) for each in heard))
    assert {(await each).status_code for each in running} == {200}


async def test_nothing_of_what_is_said_is_in_the_log(http: httpx.AsyncClient, broker: Broker, script: Script) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    ((asked, _),) = await begun(http, instance, process, calling("canary-51c", "canary-51c"))
    process.write(b"canary-51c\n")
    await asked
    ended = ("process-ended", instance)
    await until(
        "its end is logged",
        lambda: any(all(word in line for word in ended) for line in broker.log_text().splitlines()),
    )
    assert "canary-51c" not in broker.log_text()
    assert (await http.post(path_of(instance), headers=headers_of("c-1"), json=request("x"))).status_code == 400
