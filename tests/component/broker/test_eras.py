"""Servers that know the stateless revision, those that wait for a handshake, and those that know both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import pytest

from support.async_poll import until
from support.broker import eras_server
from support.broker.client import initialize, path_of, sdk_client, unix_http
from support.broker.inside import Inside, inside
from support.broker.programs import Process, Script, Scripted, Spawned
from support.broker.stateless import DISCOVERED, META, answers, asking, calling, post, served, stateless_headers
from support.broker.world import Broker
from support.gateway.mcp_http import INITIALIZE, MODERN
from toolbox_dtma.broker.session import Owner, Patience
from toolbox_dtma.link.broker import Closing, OpenSession, Upstream

pytestmark = pytest.mark.component

PROBE = {"Mcp-Toolbox-Probe": "ticket-1", "Accept": "application/json, text/event-stream"}


def instance_of(broker: Broker, kind: str, seconds: float = 0.0) -> str:
    """An instance of a small server, which takes so long to start."""

    def start(_request: OpenSession) -> Process:
        return Spawned(eras_server.command(kind, seconds))

    return broker.dtma.instance(start)


def needs_handshake(answer: httpx.Response) -> bool:
    """Whether a client takes this for a server that knows no stateless revision."""
    error = answer.json()["error"]
    versions = error.get("data", {}).get("supported", [])
    return (answer.status_code, error["code"]) == (400, -32000) and "2025-11-25" in versions and MODERN not in versions


async def said_no(process: Scripted) -> None:
    """A process that waits for a handshake, asked what it speaks."""
    asked = await process.heard()
    assert asked["method"] == "server/discover"
    process.say({"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32602, "message": "Invalid request"}})


async def test_a_server_that_waits_for_a_handshake_is_started_once_to_find_that_out(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = [asyncio.ensure_future(post(http, instance, calling(n))) for n in range(3)]
    process = await script.process()
    await said_no(process)
    answers_ = await asyncio.gather(*asked)
    assert all(map(needs_handshake, answers_)) and [each.json()["id"] for each in answers_] == [0, 1, 2]
    await process.ended()
    (name,) = broker.dtma.sessions(instance)
    assert await broker.dtma.why_closed(name) is Closing.CLIENT
    # Now it is known, for every connection.
    for connection in ("c-1", "c-2"):
        assert needs_handshake(await post(http, instance, calling(1), connection))
    assert len(broker.dtma.sessions(instance)) == 1
    answer, _ = await asyncio.gather(initialize(http, instance), script.initialized())
    assert answer.status_code == 200 and len(broker.dtma.sessions(instance)) == 2


async def test_another_deployment_is_asked_again(http: httpx.AsyncClient, broker: Broker, script: Script) -> None:
    instance = broker.dtma.instance(script)
    asked = asyncio.ensure_future(post(http, instance, calling(1)))
    await said_no(await script.process())
    assert needs_handshake(await asked)
    broker.dtma.incarnations[instance] = "the next"
    # Known as soon as anything of it was started: by a probe, before anybody is let in.
    await asyncio.gather(initialize(http, instance), script.initialized())
    process = await served(http, instance, script)
    assert process.request.instance == instance


async def test_a_process_that_ends_when_asked_waits_for_a_handshake(broker: Broker) -> None:
    instance = instance_of(broker, "exiting")
    async with sdk_client(broker.path, instance) as client:
        assert client.protocol_version == "2025-11-25"
        assert [tool.name for tool in (await client.list_tools()).tools] == ["pid"]
    assert len(broker.dtma.sessions(instance)) == 2


@pytest.mark.parametrize(
    ("kind", "seconds", "version"), [("modern", 0, MODERN), ("modern", 1, MODERN), ("legacy", 0, "2025-11-25")]
)
async def test_a_client_of_both_eras_speaks_the_one_that_the_server_knows(
    broker: Broker, kind: str, seconds: float, version: str
) -> None:
    instance = instance_of(broker, kind, seconds)
    for _ in range(2):
        async with sdk_client(broker.path, instance) as client:
            assert client.protocol_version == version
            assert not (await client.call_tool("pid", {})).is_error
    # Of the stateless one, both clients were served by one process.
    assert len(broker.dtma.sessions(instance)) == (1 if version == MODERN else 3)


@asynccontextmanager
async def hasty(patience: Patience) -> AsyncGenerator[tuple[Inside, httpx.AsyncClient]]:
    """A broker with little patience, and a client of it."""
    async with inside(patience) as parts, unix_http(parts.path) as http:
        yield parts, http


async def test_a_silent_process_waits_for_a_handshake_until_it_says_otherwise(script: Script) -> None:
    async with hasty(Patience(discover=0.2, quiet=10.0)) as (parts, http):
        instance = parts.dtma.instance(script)
        asked = asyncio.ensure_future(post(http, instance, calling(1)))
        process = await script.process()
        question = await process.heard()
        assert needs_handshake(await asked)
        # Nothing more is started while it may only be slow.
        assert needs_handshake(await post(http, instance, calling(1)))
        assert len(parts.dtma.sessions(instance)) == 1
        process.say({"jsonrpc": "2.0", "id": question["id"], "result": DISCOVERED})

        await until("it serves", lambda: parts.sessions.stateless.find(instance, Owner(connection="c-1")))
        asked = asyncio.ensure_future(post(http, instance, calling(2)))
        assert (await answers(process, {}))["method"] == "tools/call"
        assert (await asked).status_code == 200
        assert len(parts.dtma.sessions(instance)) == 1


async def test_a_process_that_answers_a_ping_and_not_the_question_waits_for_a_handshake(script: Script) -> None:
    async with hasty(Patience(quiet=0.1, present=0.05)) as (parts, http):
        instance = parts.dtma.instance(script)
        asked = asyncio.ensure_future(post(http, instance, calling(1)))
        process = await script.process()
        process.hears_pings = True
        assert (await process.heard())["method"] == "server/discover"
        assert (await answers(process, {}))["method"] == "ping"
        assert needs_handshake(await asked)


async def test_a_process_that_is_late_with_everything_is_waited_for(script: Script) -> None:
    async with hasty(Patience(quiet=0.1)) as (parts, http):
        instance = parts.dtma.instance(script)
        asked = asyncio.ensure_future(post(http, instance, calling(1)))
        process = await script.process()
        process.hears_pings = True
        question, ping = await process.heard(), await process.heard()
        assert (question["method"], ping["method"]) == ("server/discover", "ping")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.shield(asked)
        unknown = {"code": -32601, "message": "no"}
        process.say({"jsonrpc": "2.0", "id": ping["id"], "error": unknown})
        process.say({"jsonrpc": "2.0", "id": question["id"], "result": DISCOVERED})
        assert (await answers(process, {}))["method"] == "tools/call"
        assert (await asked).status_code == 200


@pytest.mark.parametrize("present", [False, True], ids=["not-there-yet", "answers-a-ping"])
async def test_a_probe_waits_longer_for_the_first_word_than_agents_do(script: Script, present: bool) -> None:
    async with hasty(Patience(discover=0.05, quiet=0.01, present=0.05)) as (parts, http):
        instance = parts.dtma.instance(script)
        asked = asyncio.ensure_future(probed(http, instance))
        process = await script.process()
        process.hears_pings = True
        question, ping = await process.heard(), await process.heard()
        if present:
            process.say({"jsonrpc": "2.0", "id": ping["id"], "result": {}})
        # Agents had theirs while the probe waits.
        agent = asyncio.ensure_future(post(http, instance, calling(1)))
        await script.process()
        assert needs_handshake(await agent) and not asked.done()
        process.say({"jsonrpc": "2.0", "id": question["id"], "result": DISCOVERED})
        assert (await answers(process, DISCOVERED))["method"] == "server/discover"
        assert (await asked).json()["result"] == DISCOVERED


async def test_a_process_that_stays_silent_is_given_up(script: Script) -> None:
    async with hasty(Patience(discover=0.1, late=0.2)) as (parts, http):
        instance = parts.dtma.instance(script)
        asked = asyncio.ensure_future(post(http, instance, calling(1)))
        process = await script.process()
        assert needs_handshake(await asked)
        (name,) = parts.dtma.sessions(instance)
        assert await parts.dtma.why_closed(name) is Closing.CLIENT
        await process.ended()
        assert needs_handshake(await post(http, instance, calling(1)))
        assert len(parts.dtma.sessions(instance)) == 1


async def test_what_a_process_says_too_late_for_one_probe_is_known_to_the_next(script: Script) -> None:
    async with hasty(Patience(probed=0.1)) as (parts, http):
        instance = parts.dtma.instance(script)
        asked = asyncio.ensure_future(probed(http, instance))
        process = await script.process()
        question = await process.heard()
        assert needs_handshake(await asked)
        process.say({"jsonrpc": "2.0", "id": question["id"], "result": DISCOVERED})
        first = Owner(ticket="ticket-1")
        await until("it serves", lambda: parts.sessions.stateless.find(instance, first))
        again = asyncio.ensure_future(probed(http, instance, "ticket-2"))
        # Of the probe: the broker has no question any more, and this one is waited for.
        heard = await (other := await script.process()).heard()
        assert heard["params"]["_meta"] == META
        other.say({"jsonrpc": "2.0", "id": heard["id"], "result": DISCOVERED})
        assert (await again).json()["result"] == DISCOVERED


async def probed(http: httpx.AsyncClient, instance: str, ticket: str = "ticket-1") -> httpx.Response:
    """The first request of a probe of both eras."""
    headers = {**stateless_headers(), **PROBE, "Mcp-Toolbox-Probe": ticket}
    del headers["Mcp-Toolbox-Connection"]
    return await http.post(path_of(instance), json=asking("server/discover"), headers=headers)


async def test_a_probe_that_falls_back_to_a_handshake_goes_on_with_the_same_process(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = asyncio.ensure_future(probed(http, instance))
    process = await script.process()
    assert (process.request.connection, process.request.ticket) == ("", "ticket-1")
    await said_no(process)
    assert needs_handshake(await asked) and needs_handshake(await probed(http, instance))
    begins = asyncio.ensure_future(http.post(path_of(instance), json=INITIALIZE, headers=PROBE))
    heard = await process.heard()
    assert (heard["method"], heard["id"]) == ("initialize", "init")
    process.say({"jsonrpc": "2.0", "id": "init", "result": {"serverInfo": {}}})
    answer = await begins
    assert answer.status_code == 200 and len(broker.dtma.sessions(instance)) == 1
    session = {**PROBE, "Mcp-Session-Id": answer.headers["Mcp-Session-Id"]}
    assert (await http.delete(path_of(instance), headers=session)).status_code == 204
    (name,) = broker.dtma.sessions(instance)
    assert await broker.dtma.why_closed(name) is Closing.CLIENT


async def test_a_later_probe_of_the_same_deployment_asks_nothing(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = asyncio.ensure_future(post(http, instance, calling(1)))
    await said_no(await script.process())
    assert needs_handshake(await asked)
    assert needs_handshake(await probed(http, instance))
    process = await script.process()
    begins = asyncio.ensure_future(http.post(path_of(instance), json=INITIALIZE, headers=PROBE))
    assert (await process.heard())["method"] == "initialize"
    process.end()
    assert "has ended" in (await begins).json()["error"]["message"]


async def test_nothing_that_was_read_of_a_process_is_lost_on_the_handshake(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = asyncio.ensure_future(probed(http, instance))
    process = await script.process()
    question = await process.heard()
    error = b'{"jsonrpc":"2.0","id":%d,"error":{"code":-32601,"message":"no"}}\n{"jsonrpc":"2.0",' % question["id"]
    process.write(b"no key\n", errors=True)
    process.write(error)
    assert needs_handshake(await asked)
    begins = asyncio.ensure_future(http.post(path_of(instance), json=INITIALIZE, headers=PROBE))
    assert (await process.heard())["method"] == "initialize"
    process.write(b'"method":"notifications/message","params":{}}\n')
    process.end()
    # Also what it complained of before.
    assert (await begins).json()["error"]["message"] == "The server's process has ended: no key"
    assert len(broker.dtma.sessions(instance)) == 1


async def test_a_process_that_has_ended_is_replaced_for_the_handshake(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = asyncio.ensure_future(probed(http, instance))
    process = await script.process()
    await process.heard()
    process.end()
    assert needs_handshake(await asked)
    begins = asyncio.ensure_future(http.post(path_of(instance), json=INITIALIZE, headers=PROBE))
    other = await script.initialized()
    assert (await begins).status_code == 200 and other is not process
    assert len(broker.dtma.sessions(instance)) == 2


async def test_a_probe_of_a_stateless_server_is_served_and_can_shake_hands_with_another_process(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = asyncio.ensure_future(probed(http, instance))
    process = await script.process()
    for _ in range(2):
        # The broker's question, and the probe's.
        assert (await answers(process, DISCOVERED))["method"] == "server/discover"
    assert (await asked).json()["result"] == DISCOVERED
    answer, other = await asyncio.gather(
        http.post(path_of(instance), json=INITIALIZE, headers=PROBE), script.initialized()
    )
    assert answer.status_code == 200 and other.request.ticket == "ticket-1"
    # For agents it is known now.
    asked = asyncio.ensure_future(post(http, instance, calling(1)))
    assert (await answers(await script.process(), {}))["method"] == "tools/call"
    assert (await asked).status_code == 200


async def test_a_broker_that_stops_tells_whoever_waits_for_the_question(script: Script) -> None:
    async with hasty(Patience()) as (parts, http):
        instance = parts.dtma.instance(script)
        asked = asyncio.ensure_future(post(http, instance, calling(1)))
        await (await script.process()).heard()
        closing = asyncio.ensure_future(parts.sessions.stateless.close("The session broker is stopping"))
        assert (await asked).json()["error"]["message"] == "The session broker is stopping"
        await closing
        await until("nothing is left", lambda: not len(parts.sessions.stateless))


async def test_a_server_with_an_address_waits_for_a_handshake(http: httpx.AsyncClient, broker: Broker) -> None:
    nowhere = Upstream(address="127.0.0.1", port=1, path="/sse")
    instance = broker.dtma.instance(lambda _request: nowhere)
    assert needs_handshake(await post(http, instance, calling(1)))
    assert needs_handshake(await post(http, instance, calling(1)))
    (name,) = broker.dtma.sessions(instance)
    assert await broker.dtma.why_closed(name) is Closing.CLIENT
    assert needs_handshake(await probed(http, instance))
    assert len(broker.dtma.sessions(instance)) == 2
