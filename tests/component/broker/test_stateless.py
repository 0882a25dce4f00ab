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
from support.broker.client import Events, headers_of, open_session, path_of
from support.broker.programs import Script, Scripted
from support.broker.stateless import (
    LISTEN,
    META,
    SUBSCRIPTION,
    answers,
    asking,
    calling,
    lists,
    post,
    served,
    stateless_headers,
    stateless_process,
    streaming,
)
from support.broker.world import Broker
from support.gateway.mcp_http import INITIALIZE, MODERN, messages, request
from toolbox_dtma.broker.routing import MAX_RUNNING
from toolbox_dtma.link.broker import Closing, Ended, Refused, SessionRefused

pytestmark = pytest.mark.component


def result(id: Any, **members: Any) -> dict[str, Any]:
    """An answer."""
    return {"jsonrpc": "2.0", "id": id, "result": members}


def note(method: str, **params: Any) -> dict[str, Any]:
    """A notification."""
    return {"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params}


def progress(number: Any, step: int) -> dict[str, Any]:
    """How far a request is."""
    return note("progress", progressToken=number, progress=step)


def changed(subscription: Any, method: str = "tools/list_changed") -> dict[str, Any]:
    """Something on a subscription."""
    return note(method, _meta={SUBSCRIPTION: subscription})


async def begun(
    http: httpx.AsyncClient, instance: str, process: Scripted, *bodies: dict[str, Any]
) -> list[tuple[asyncio.Future[httpx.Response], dict[str, Any]]]:
    """Requests under way, in this order, each with what the process heard of it."""
    running: list[tuple[asyncio.Future[httpx.Response], dict[str, Any]]] = []
    for body in bodies:
        asked = asyncio.ensure_future(post(http, instance, body))
        running.append((asked, await process.heard()))
    return running


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


@asynccontextmanager
async def streaming_listen(
    http: httpx.AsyncClient, instance: str, process: Scripted, id: Any
) -> AsyncGenerator[tuple[Events, int]]:
    """A subscription that was acknowledged."""

    async def begins() -> int:
        number = (await process.heard())["id"]
        process.say(changed(number, "subscriptions/acknowledged"))
        return number

    number = asyncio.ensure_future(begins())
    async with streaming(http, instance, asking(LISTEN, id, notifications={})) as events:
        assert await events.next() == changed(id, "subscriptions/acknowledged")
        yield events, await number


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


async def test_first_requests_at_the_same_time_start_one_process(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = [asyncio.ensure_future(post(http, instance, calling(n))) for n in range(8)]
    process = await stateless_process(script)
    for _ in asked:
        heard = await process.heard()
        process.say(result(heard["id"]))
    assert [(await each).json()["id"] for each in asked] == list(range(8))
    assert len(broker.dtma.sessions(instance)) == 1


async def test_who_hangs_up_while_it_starts_does_not_take_it_from_others(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    leaves = asyncio.ensure_future(post(http, instance, calling("leaves")))
    process = await script.process()
    discover = await process.heard()
    stays = asyncio.ensure_future(post(http, instance, calling("stays")))
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    # Answered after the hang-up was noticed.
    assert (await http.get(path_of(instance), headers=headers_of("c-1"))).status_code == 400
    process.say({"jsonrpc": "2.0", "id": discover["id"], "result": {"supportedVersions": [MODERN]}})
    await answers(process, {"ok": True})
    assert (await stays).json() == result("stays", ok=True)
    assert len(broker.dtma.sessions(instance)) == 1


async def test_two_connections_have_two_processes_and_a_session_has_another(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    processes = {"c-1": await served(http, instance, script, "c-1")}
    processes["c-2"] = await served(http, instance, script, "c-2", known=True)
    session, third = await asyncio.gather(open_session(http, instance, "c-1"), script.initialized())
    assert [processes[name].request.connection for name in processes] == ["c-1", "c-2"]
    for connection, process in processes.items():
        asked = asyncio.ensure_future(post(http, instance, calling(1), connection))
        await answers(process, {"of": connection})
        assert (await asked).json() == result(1, of=connection)
    # A session that such a request names means nothing.
    ignored = asyncio.ensure_future(post(http, instance, calling(1), headers={"Mcp-Session-Id": session.id}))
    await answers(processes["c-1"], {})
    assert (await ignored).status_code == 200 and "Mcp-Session-Id" not in (await ignored).headers
    listing = asyncio.ensure_future(session.call("tools/list"))
    assert (await third.heard())["method"] == "tools/list"
    third.say(result(1))
    await listing
    assert len(broker.dtma.sessions(instance)) == 3


async def test_a_process_in_which_nothing_is_said_is_ended_also_while_somebody_listens(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script, idle_seconds=1.0)
    process = await served(http, instance, script)
    ((asked, heard),) = await begun(http, instance, process, calling(1))
    (name,) = broker.dtma.sessions(instance)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await process.line()
    # A call that runs is no silence, however long it takes.
    assert name not in broker.dtma.closed and not asked.done()
    process.say(result(heard["id"]))
    await asked
    async with streaming_listen(http, instance, process, "a") as (events, _):
        ended = await events.next()
        assert ended["id"] == "a" and "idle" in ended["error"]["message"] and await events.next() is None
    assert await broker.dtma.why_closed(name) is Closing.IDLE
    await process.ended()
    # The next one is served by a process that need not be asked any more.
    asked = asyncio.ensure_future(post(http, instance, calling(2)))
    await answers(await script.process(), {"again": True})
    assert (await asked).json() == result(2, again=True)


async def test_a_process_that_dies_in_the_middle_fails_what_runs_and_the_next_request_has_another(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    running = await begun(http, instance, process, calling(1), calling("1"), asking(LISTEN, 7))
    process.end()
    for (asked, _), id_ in zip(running, (1, "1", 7), strict=True):
        answer = await asked
        assert answer.status_code == 200 and answer.json()["id"] == id_
        assert answer.json()["error"] == {"code": -32000, "message": "The server's process has ended"}
    (name,) = broker.dtma.sessions(instance)
    assert await broker.dtma.why_closed(name) is Closing.ENDED
    asked = asyncio.ensure_future(post(http, instance, calling(2)))
    await answers(await script.process(), {})
    assert (await asked).status_code == 200


@pytest.mark.parametrize("why", [Ended.REVOKED, Ended.STOPPED, Ended.ENGINE])
async def test_what_dtma_ends_is_over_at_once(
    http: httpx.AsyncClient, broker: Broker, script: Script, why: Ended
) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    ((asked, _),) = await begun(http, instance, process, calling(1))
    (name,) = broker.dtma.sessions(instance)
    broker.dtma.end(name, why, "The server was stopped")
    assert (await asked).json()["error"] == {"code": -32000, "message": "The server was stopped"}
    await process.ended()
    assert name not in broker.dtma.closed


async def test_what_a_process_said_before_its_end_still_arrives(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    process = await served(http, instance, script)
    (answered, one), (unanswered, _) = await begun(http, instance, process, calling(1), calling(2))
    (name,) = broker.dtma.sessions(instance)
    broker.dtma.end(name, Ended.EXITED, "The server's process has exited with code 3.")
    process.say(result(one["id"], x="y" * 500_000))
    process.end()
    assert len((await answered).json()["result"]["x"]) == 500_000
    assert (await unanswered).json()["error"]["message"] == "The server's process has exited with code 3."


async def test_a_process_that_writes_what_is_no_message_is_ended(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    for written in (b"Listening on port 80\n", b'{"id":1,"id":2,"result":{}}\n', b'[{"id":1,"result":{}}]\n'):
        instance = broker.dtma.instance(script)
        process = await served(http, instance, script)
        ((asked, _),) = await begun(http, instance, process, calling(1))
        process.write(written)
        assert "what is no message" in (await asked).json()["error"]["message"]
        (name,) = broker.dtma.sessions(instance)
        assert await broker.dtma.why_closed(name) is Closing.PROTOCOL


@pytest.mark.parametrize(
    ("why", "seconds", "status", "after"),
    [(Refused.FULL, 2.5, 503, "3"), (Refused.STOPPED, None, 503, "5"), (Refused.UNKNOWN, None, 404, None)],
)
async def test_who_gets_no_process_is_told_why_and_when_to_come_again(
    http: httpx.AsyncClient, broker: Broker, why: Refused, seconds: float | None, status: int, after: str | None
) -> None:
    refused = SessionRefused(request=0, why=why, message="All sessions are taken", retry_seconds=seconds)
    instance = broker.dtma.instance(lambda _asked: refused)
    for _ in range(2):
        answer = await post(http, instance, calling("a"))
        assert (answer.status_code, answer.headers.get("Retry-After")) == (status, after)
        assert answer.json()["id"] == "a" and answer.json()["error"]["message"] == "All sessions are taken"


REGION = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}


def routed(region: str = "eu") -> dict[str, Any]:
    """A call with an argument that its header repeats."""
    return asking("tools/call", name="route", arguments={"region": region})


async def test_a_header_that_repeats_an_argument_must_say_the_same(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    right = asyncio.ensure_future(post(http, instance, routed(), headers={"Mcp-Param-Region": "eu"}))
    process = await stateless_process(script)
    first = await process.heard()
    assert first["method"] == "tools/list" and "cursor" not in first["params"]
    process.say(result(first["id"], tools=[{"name": "other", "inputSchema": {}}], nextCursor="2"))
    assert (await lists(process, [{"name": "route", "inputSchema": REGION}]))["params"]["cursor"] == "2"
    assert (await answers(process, {}))["params"]["name"] == "route"
    assert (await right).status_code == 200
    for headers in ({}, {"Mcp-Param-Region": "us"}, {"Mcp-Param-Region": "=?base64?!?="}):
        answer = await post(http, instance, routed(), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"], answer.json()["id"]) == (400, -32020, 1)
        assert "Mcp-Param-Region" in answer.json()["error"]["message"]
    # A tool without marks, and a header without a mark, are no matter.
    plain = asking("tools/call", name="other", arguments={"region": "eu"})
    asked = asyncio.ensure_future(post(http, instance, plain, headers={"Mcp-Param-Region": "us"}))
    assert (await answers(process, {}))["params"]["name"] == "other"
    assert (await asked).status_code == 200


async def test_what_is_compared_follows_the_lists_that_clients_get(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = asyncio.ensure_future(post(http, instance, routed()))
    process = await stateless_process(script, tools=[{"name": "route", "inputSchema": {}}])
    await answers(process, {})
    assert (await asked).status_code == 200
    listing = asyncio.ensure_future(post(http, instance, asking("tools/list")))
    await lists(process, [{"name": "route", "inputSchema": REGION}])
    await listing
    assert (await post(http, instance, routed())).json()["error"]["code"] == -32020
    async with streaming_listen(http, instance, process, "a") as (events, number):
        process.say(changed(number))
        await events.next()
        asked = asyncio.ensure_future(post(http, instance, routed()))
        await lists(process, [{"name": "route", "inputSchema": {}}])
        await answers(process, {})
        assert (await asked).status_code == 200


async def test_a_server_that_lists_no_tools_is_called_without_a_comparison(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = asyncio.ensure_future(post(http, instance, routed()))
    process = await stateless_process(script)
    heard = await process.heard()
    process.say({"jsonrpc": "2.0", "id": heard["id"], "error": {"code": -32601, "message": "no"}})
    assert (await answers(process, {}))["method"] == "tools/call"
    assert (await asked).status_code == 200


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
