"""Session ids belong to one connection of one container, on whichever worker."""

from __future__ import annotations

import base64

import httpx
import pytest
from aiohttp import web

from support.gateway.mcp_http import RawSession, call, messages, open_session, request
from support.gateway.mcp_servers import RealServer, ScriptedServer, Seen, json_answer
from support.gateway.scripted_dtma import new_key_ring
from support.gateway.threads import eventually
from support.gateway.world import World, by_outcome, credential
from toolbox_dtma.link.messages import Change, KeyRing

pytestmark = pytest.mark.component


async def test_the_server_s_own_id_is_never_shown(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    answer = json_answer({"jsonrpc": "2.0", "id": 1, "result": {}}, headers={"Mcp-Session-Id": "upstream-own"})
    script.answer = answer
    connection = gateway.connect(gateway.instance(script.port))
    got = await http.post(connection.url, json=request("initialize"), headers=connection.headers)
    signed = got.headers["Mcp-Session-Id"]
    assert signed.startswith("mt1.k1.") and "upstream-own" not in signed
    again = await http.post(
        connection.url, json=request("ping"), headers={**connection.headers, "Mcp-Session-Id": signed}
    )
    assert again.headers["Mcp-Session-Id"].startswith("mt1.")
    assert [seen.all("Mcp-Session-Id") for seen in script.seen] == [[], ["upstream-own"]]


async def test_a_session_of_anyone_else_is_not_found(
    gateway: World, everyday: RealServer, http: httpx.AsyncClient
) -> None:
    instance = gateway.instance(everyday.port)
    mine, theirs = gateway.connect(instance), gateway.connect(instance)
    elsewhere = gateway.connect(gateway.instance(everyday.port))
    session = await open_session(http, mine)
    raw = base64.urlsafe_b64decode(session.id.split(".")[2] + "==").decode()
    upstream = raw.split(",")[-2].strip('"')
    rows = {
        "another connection to the same server": (theirs, session.id),
        "another server": (elsewhere, session.id),
        "the server's own id": (mine, upstream),
        "a tag cut short": (mine, session.id[:-1]),
        "another key id": (mine, session.id.replace(".k1.", ".k2.")),
        "nothing": (mine, ""),
        "rubbish": (mine, "x" * 5000),
    }
    for name, (connection, id) in rows.items():
        for method in ("POST", "GET", "DELETE"):
            answer = await http.request(
                method,
                connection.url,
                json=request("tools/list") if method == "POST" else None,
                headers={**connection.headers, "Mcp-Session-Id": id},
            )
            assert answer.status_code == 404, (name, method)
            assert answer.json()["error"]["code"] == -32001
    assert (await session.post(request("tools/list"))).status_code == 200


async def test_a_new_container_ends_the_sessions_of_the_old_one(
    gateway: World, everyday: RealServer, http: httpx.AsyncClient
) -> None:
    instance = gateway.instance(everyday.port)
    session = await open_session(http, gateway.connect(instance))
    gateway.change_instance(instance, incarnation="the-next")
    assert (await session.post(request("tools/list"))).status_code == 404
    await open_session(http, session.connection)


async def test_any_worker_serves_any_session(gateway: World, everyday: RealServer, http: httpx.AsyncClient) -> None:
    session = await open_session(http, gateway.connect(gateway.instance(everyday.port)))
    statuses: list[int] = []
    # Each client is a new TCP connection, and the kernel spreads those over the workers.
    for _ in range(16):
        async with httpx.AsyncClient(verify=gateway.tls.client_context(), timeout=15, trust_env=False) as fresh:
            statuses.append(
                (await RawSession(fresh, session.connection, session.id).post(call("get_time"))).status_code
            )
    assert by_outcome(statuses) == {200: 16}


async def test_a_rotated_token_keeps_its_sessions(
    gateway: World, everyday: RealServer, http: httpx.AsyncClient
) -> None:
    session = await open_session(http, gateway.connect(gateway.instance(everyday.port)))
    gateway.change_grant(session.connection, credentials=(credential("mtb_rotated"),))
    assert (await session.post(request("tools/list"))).status_code == 401
    answer = await session.post(request("tools/list"), Authorization="Bearer mtb_rotated")
    assert answer.status_code == 200 and len(messages(answer)[0]["result"]["tools"]) == 4


async def test_a_key_that_left_the_ring_ends_its_sessions(
    gateway: World, everyday: RealServer, http: httpx.AsyncClient
) -> None:
    old = gateway.dtma.keyring
    new = new_key_ring("k2")
    session = await open_session(http, gateway.connect(gateway.instance(everyday.port)))
    try:
        gateway.dtma.apply(Change(keyring=KeyRing(signing="k2", keys=(*old.keys, *new.keys))))
        assert (await session.post(request("tools/list"))).status_code == 200
        assert (await open_session(http, session.connection)).id.startswith("mt1.k2.")
        gateway.dtma.apply(Change(keyring=new))
        assert (await session.post(request("tools/list"))).status_code == 404
    finally:
        gateway.dtma.apply(Change(keyring=old))


@pytest.mark.parametrize("id", ["has space", "x" * 1025])
async def test_an_unusable_session_id_of_a_server_is_502(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, id: str
) -> None:
    script.answer = json_answer({"jsonrpc": "2.0", "id": 1, "result": {}}, headers={"Mcp-Session-Id": id})
    connection = gateway.connect(gateway.instance(script.port))
    answer = await http.post(connection.url, json=request("initialize"), headers=connection.headers)
    assert answer.status_code == 502


async def test_two_sessions_of_two_agents_never_mix(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    async def answer(_request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        (uid,) = seen.all("Mcp-Toolbox-Connection")
        own = seen.all("Mcp-Session-Id") or [f"s-{uid}"]
        return web.json_response(
            {"jsonrpc": "2.0", "id": 1, "result": {"uid": uid}}, headers={"Mcp-Session-Id": own[0]}
        )

    script.answer = answer
    instance = gateway.instance(script.port)
    agents = [gateway.connect(instance) for _ in range(2)]
    for agent in agents:
        first = await http.post(agent.url, json=request("initialize"), headers=agent.headers)
        headers = {**agent.headers, "Mcp-Session-Id": first.headers["Mcp-Session-Id"]}
        assert (await http.post(agent.url, json=request("ping"), headers=headers)).json()["result"]["uid"] == agent.uid
    eventually(lambda: len(script.seen) == 4, "four requests")
    assert {tuple(s.all("Mcp-Session-Id")) for s in script.seen} == {(), *((f"s-{a.uid}",) for a in agents)}
