"""The attack table: each refused as the table says, audited, and never seen by the server."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Generator
from typing import Any, cast

import httpx
import pytest

from support.gateway.attack_requests import ATTACKS, Attack
from support.gateway.raw_http import head_of
from support.gateway.scene import Scene, prepared_scene
from support.gateway.tls import HOST
from toolbox_dtma.gateway.bodies import BODY_SECONDS
from toolbox_dtma.gateway.methods import KNOWN_REQUESTS

pytestmark = pytest.mark.component

AUDITED = {"event", "level", "timestamp", "part", "role", "pid", "status", "reason", "http_method", "source"}
"""What every line of a refusal says; connection, instance and method are there where they are known."""
HTTP_METHODS = {"GET", "POST", "DELETE", "PUT", "PATCH", "TRACE", "CONNECT", "HEAD", "UNKNOWN"}


@pytest.fixture(scope="module")
def scene() -> Generator[Scene]:
    """A gateway that is attacked by every test of this module."""
    with prepared_scene() as made:
        yield made


def pieces_of(scene: Scene, attack: Attack) -> list[bytes]:
    """The attack as bytes."""
    own, other = scene.connections[attack.as_], scene.connections["elsewhere"].instance
    values = {**scene.values, "token": own.token, "instance": own.instance, "other": other, "host": HOST}
    body = attack.body if isinstance(attack.body, bytes) else json.dumps(attack.body).encode()
    path = (attack.path or "/servers/{instance}/mcp").format_map(values)
    lines = [
        *(("Host", value) for value in attack.host),
        *(("Authorization", value) for value in attack.authorization),
        ("Accept", "application/json, text/event-stream"),
        *(("Content-Type", value) for value in attack.content_type),
        *attack.headers,
    ]
    headers = [(name, value.format_map(values)) for name, value in lines]
    if attack.length:
        headers.append(("Content-Length", str(len(body))))
    # In one piece: whether the head alone was judged already would be a matter of chance.
    return [head_of(f"{attack.method} {path} {attack.version}".encode(), headers) + body]


def codes(document: Any) -> set[int]:
    errors = cast("list[Any]", document) if isinstance(document, list) else [document]
    return {each["error"]["code"] for each in errors}


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_an_attack_is_refused_audited_and_never_seen_by_the_server(scene: Scene, attack: Attack) -> None:
    scene.script.seen.clear()
    source = scene.source()
    reply = scene.talk(pieces_of(scene, attack), source, head_only=attack.method == "HEAD")
    assert (reply.status, reply.cut) == (attack.status, False)
    if attack.code is not None:
        assert codes(json.loads(reply.body)) == {attack.code}
    assert reply.header("cache-control") == ["no-store"]
    assert scene.script.seen == []
    line = scene.audited(source)
    assert (line["event"], line["status"], line["reason"]) == ("refused", attack.status, attack.reason)
    own = scene.connections[attack.as_]
    holder = (own.uid, own.instance) if attack.holder else (None, None)
    assert (line.get("connection"), line.get("instance")) == holder
    # Whatever else was sent has no place in the line.
    assert AUDITED <= line.keys() <= AUDITED | {"connection", "instance", "method"}
    assert line["http_method"] in HTTP_METHODS
    assert line.get("method", "other") in {*KNOWN_REQUESTS, "batch", "other"}


def test_every_attack_has_one_row() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(names) == len(set(names)) and len(names) >= 40


def test_guessing_tokens_is_slowed_down(scene: Scene) -> None:
    source, url = scene.source(), scene.connections["limited"].url
    transport = httpx.HTTPTransport(verify=scene.context, local_address=source, trust_env=False)
    # One connection, so that one worker counts; what refills meanwhile is a few.
    with httpx.Client(transport=transport, timeout=30) as http:
        got = [http.post(url, json={}, headers={"Authorization": "Bearer forged"}).status_code for _ in range(60)]
    assert got[:20] == [401] * 20 and 429 in got
    last = json.loads(scene.logged().splitlines()[got.index(429)])
    assert (last["event"], last["status"], last["reason"], last["source"]) == ("refused", 429, "throttled", source)


def test_a_body_that_breaks_off_later_is_refused_at_once(scene: Scene) -> None:
    source, own = scene.source(), scene.connections["limited"]
    headers = [("Host", HOST), *own.headers.items(), ("Transfer-Encoding", "chunked"), ("Expect", "100-continue")]
    with (
        socket.create_connection((HOST, scene.world.port), 30, source_address=(source, 0)) as plain,
        scene.context.wrap_socket(plain, server_hostname=HOST) as tls,
    ):
        tls.sendall(head_of(f"POST /servers/{own.instance}/mcp HTTP/1.1".encode(), headers))
        # The body is being waited for from now on; its deadline is as long as this socket's.
        assert tls.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        tls.sendall(b"2\r\n{}\r\nforged\r\n")
        begun = time.monotonic()
        assert tls.recv(1000).startswith(b"HTTP/1.1 400 ")
        assert time.monotonic() - begun < BODY_SECONDS / 2
    line = scene.audited(source)
    assert (line["reason"], line["connection"], line["instance"]) == ("http", own.uid, own.instance)
