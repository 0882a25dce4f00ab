"""The processes of requests without a session: which of them there are, how they end, and who gets none."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from support.broker.client import headers_of, open_session, path_of, unix_http
from support.broker.inside import inside
from support.broker.programs import Script
from support.broker.stateless import (
    LISTEN,
    answers,
    asking,
    begun,
    calling,
    post,
    result,
    served,
    stateless_process,
    streaming_listen,
)
from support.broker.world import Broker
from support.gateway.mcp_http import MODERN
from toolbox_dtma.broker.session import Patience
from toolbox_dtma.link.broker import Closing, Ended, Refused, SessionRefused

pytestmark = pytest.mark.component


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
    instance = broker.dtma.instance(script, idle_seconds=2.0)
    process = await served(http, instance, script)
    ((asked, heard),) = await begun(http, instance, process, calling(1))
    (name,) = broker.dtma.sessions(instance)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.6):
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


async def test_what_a_process_said_before_its_end_still_arrives(script: Script) -> None:
    # As long as its last words may take on a busy machine.
    async with inside(Patience(last_words=30.0)) as broker, unix_http(broker.path) as http:
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
