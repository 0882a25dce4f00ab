"""Who gets in, over real sockets."""

from __future__ import annotations

import datetime
import socket

import httpx
import pytest

from support.gateway.mcp_http import request
from support.gateway.mcp_servers import ScriptedServer
from support.gateway.threads import eventually
from support.gateway.tls import HOST
from support.gateway.world import World, credential

pytestmark = pytest.mark.component

PING = request("ping")


async def test_without_a_known_token_the_answer_is_401(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.instance(script.port))
    for value in (None, "Bearer mtb_wrong", f"Basic {connection.token}", connection.token):
        headers = {k: v for k, v in connection.headers.items() if k != "Authorization"}
        if value is not None:
            headers["Authorization"] = value
        answer = await http.post(f"{connection.url}?access_token={connection.token}", json=PING, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="magic-toolbox", error="invalid_token"'
        assert "resource_metadata" not in answer.headers["WWW-Authenticate"]
    assert script.seen == []


async def test_a_token_for_another_server_learns_nothing(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    mine, other = (gateway.connect(gateway.instance(script.port)) for _ in range(2))
    missing = mine.url.replace(mine.instance, "00000000-0000-0000-0000-000000000000")
    answers = [await http.post(url, json=PING, headers=mine.headers) for url in (other.url, missing)]
    assert [a.status_code for a in answers] == [403, 403]
    assert answers[0].content == answers[1].content
    assert {**answers[0].headers, "date": ""} == {**answers[1].headers, "date": ""}
    assert script.seen == []


@pytest.mark.parametrize(
    "path",
    ["/.well-known/oauth-protected-resource", "/.well-known/oauth-authorization-server", "/", "/servers", "/metrics"],
)
async def test_other_paths_are_404_without_a_challenge(gateway: World, http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(gateway.base + path)
    assert answer.status_code == 404 and "WWW-Authenticate" not in answer.headers


async def test_browsers_of_other_sites_are_kept_out(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.instance(script.port))

    async def status(**headers: str) -> int:
        return (await http.post(connection.url, json=PING, headers={**connection.headers, **headers})).status_code

    assert await status(Origin="https://evil.example.com") == 403
    assert await status(Origin="https://console.example.com") == 202
    assert await status(Host="rebound.example.com") == 421
    assert all(not seen.all("Origin") for seen in script.seen)


async def test_a_token_ends_at_its_time_without_any_word_from_dtma(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.instance(script.port))
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=4)
    gateway.change_grant(connection, credentials=(credential(connection.token, soon), credential("mtb_next")))
    assert (await http.post(connection.url, json=PING, headers=connection.headers)).status_code == 202
    with httpx.Client(verify=gateway.tls.client_context(), timeout=15, trust_env=False) as client:
        eventually(
            lambda: client.post(connection.url, json=PING, headers=connection.headers).status_code == 401,
            "the old token ends",
            seconds=30,
        )
    next_ = {**connection.headers, "Authorization": "Bearer mtb_next"}
    assert (await http.post(connection.url, json=PING, headers=next_)).status_code == 202


async def test_both_tokens_work_during_a_rotation(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.instance(script.port))
    gateway.change_grant(connection, credentials=(credential(connection.token), credential("mtb_rotated")))
    for token in (connection.token, "mtb_rotated"):
        headers = {**connection.headers, "Authorization": f"Bearer {token}"}
        assert (await http.post(connection.url, json=PING, headers=headers)).status_code == 202


def test_two_credentials_or_a_broken_request_are_refused(gateway: World, script: ScriptedServer) -> None:
    connection = gateway.connect(gateway.instance(script.port))
    path = connection.url.removeprefix(gateway.base)
    good = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    token = f"Authorization: Bearer {connection.token}\r\n"
    length = "Content-Length: 2\r\n"
    rows = {
        "two tokens": good + token + token + length + "\r\n{}",
        "two content types": good + token + length + "Content-Type: application/json\r\n\r\n{}",
        "a protocol version twice": good + token + length + "MCP-Protocol-Version: 2025-11-25\r\n" * 2 + "\r\n{}",
        "a session twice": good + token + length + "Mcp-Session-Id: a\r\n" * 2 + "\r\n{}",
        "two lengths": good + token + length + "Content-Length: 3\r\n\r\n{}",
        "length and chunks": good + token + length + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "a folded header": good + token + length + "X: a\r\n b\r\n\r\n{}",
        "a space before the colon": good + token + length + "X : a\r\n\r\n{}",
        "two hosts": good + token + length + f"Host: {HOST}\r\n\r\n{{}}",
    }
    context = gateway.tls.client_context()
    for name, raw in rows.items():
        with (
            socket.create_connection((HOST, gateway.port), 5) as plain,
            context.wrap_socket(plain, server_hostname=HOST) as tls,
        ):
            tls.sendall(raw.encode())
            status = int(tls.recv(4096).split(b" ", 2)[1])
        assert 400 <= status < 500, (name, status)
    assert script.seen == []


async def test_no_token_and_no_argument_is_ever_logged(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.instance(script.port, address=None))
    secret = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "secretname", "a": "secretvalue"}}
    await http.post(connection.url, json=secret, headers=connection.headers)
    await http.post(connection.url, content=b'{"secretvalue', headers=connection.headers)
    await http.post(connection.url, json=secret, headers={**connection.headers, "Authorization": "Bearer secrettoken"})
    lines = [line for line in gateway.log_lines() if line.get("connection") == connection.uid]
    assert [(line["event"], line["status"], line["reason"]) for line in lines] == [
        ("refused", 503, "instance-away"),
        ("refused", 400, "body"),
    ]
    for secret_text in ("secretname", "secretvalue", "secrettoken", connection.token):
        assert secret_text not in gateway.log_text()
