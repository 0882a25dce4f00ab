"""The attack table, servers' side: what a hostile server answers never reaches an agent as it was meant to."""

from __future__ import annotations

import json
from collections.abc import Generator

import pytest

from support.gateway.attack_answers import ANSWERS, Hostile
from support.gateway.raw_http import head_of, raw_server
from support.gateway.scene import LIMITED, SURFACE, Scene, bare_scene
from support.gateway.tls import HOST

pytestmark = pytest.mark.component


@pytest.fixture(scope="module")
def scene() -> Generator[Scene]:
    """A gateway that is attacked by every test of this module."""
    with bare_scene() as made:
        yield made


@pytest.mark.parametrize("hostile", ANSWERS, ids=[hostile.name for hostile in ANSWERS])
def test_a_hostile_answer_is_refused_or_made_harmless(scene: Scene, hostile: Hostile) -> None:
    world, source = scene.world, scene.source()
    with raw_server(hostile.reply) as (port, heads):
        expose = LIMITED if hostile.as_ == "limited" else None
        connection = world.connect(world.instance(port, surface=SURFACE), expose=expose)
        scene.connections["agent"] = connection
        scene.logged()
        body = b"" if hostile.ask is None else json.dumps(hostile.ask).encode()
        path = f"/servers/{connection.instance}/mcp"
        headers = [("Host", HOST), *connection.headers.items(), ("Content-Length", str(len(body)))]
        line = f"{'GET' if hostile.ask is None else 'POST'} {path} HTTP/1.1".encode()
        reply = scene.talk([head_of(line, headers) + body], source)
        assert len(heads) == 1, "nothing is asked twice"
    assert (reply.status, reply.cut) == (hostile.status, hostile.cut)
    assert hostile.shows in reply.raw
    for text in hostile.never:
        assert text.lower() not in reply.raw.lower()
    if hostile.audit is None:
        assert scene.logged() == ""
    else:
        found = scene.audited(source)
        assert (found["event"], found["reason"]) == hostile.audit
        assert (found["connection"], found["instance"]) == (connection.uid, connection.instance)


DISARMED: dict[str, tuple[tuple[str, str], ...]] = {
    "credentials of its own": (
        ("Cookie", "forged=1"),
        ("Proxy-Authorization", "Basic forged"),
        ("X-Api-Key", "forged"),
    ),
    "somebody else's name": (("Mcp-Toolbox-Connection", "forged"), ("mcp-toolbox-connection", "forged")),
    "having our headers stripped": (("Connection", "Mcp-Toolbox-Connection, Host, Accept, Mcp-Session-Id, forged"),),
    "another way to say who it is": (
        ("X-Forwarded-For", "forged"),
        ("Forwarded", "for=forged"),
        ("X-Real-IP", "forged"),
    ),
    "another method": (("X-HTTP-Method-Override", "DELETE"), ("X-Method-Override", "forged")),
    "another path": (("X-Original-URL", "/forged"), ("X-Rewrite-URL", "/forged")),
    "an encoding": (("Accept-Encoding", "gzip, forged"), ("TE", "trailers, forged")),
    "an upgrade": (("Upgrade", "websocket"), ("Connection", "upgrade"), ("Sec-WebSocket-Key", "forged")),
    "an expectation": (("Expect", "forged"),),
    "an event to go on after": (("Last-Event-ID", "forged"),),
    "a name of its own": (
        ("User-Agent", "forged"),
        ("Referer", "http://forged"),
        ("Via", "forged"),
        ("From", "forged"),
    ),
    "a page that is allowed": (("Origin", "https://console.example.com"), ("Sec-Fetch-Site", "cross-site")),
}
"""Asked for by the client, and never passed on."""


@pytest.mark.parametrize("wish", DISARMED)
@pytest.mark.parametrize("framing", ["length", "chunks and trailers"])
def test_what_a_client_wishes_the_server_to_see_is_not_passed_on(scene: Scene, wish: str, framing: str) -> None:
    scene.script.seen.clear()
    connection = scene.world.connect(scene.world.instance(scene.script.port))
    document = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    headers = [("Host", HOST), *connection.headers.items(), *DISARMED[wish]]
    if framing == "length":
        headers.append(("Content-Length", str(len(document))))
        body = document
    else:
        headers.append(("Transfer-Encoding", "chunked"))
        trailers = b"Mcp-Method: forged\r\nAuthorization: forged\r\nMcp-Toolbox-Connection: forged"
        body = b"%x;forged=1\r\n%s\r\n0\r\n%s\r\n\r\n" % (len(document), document, trailers)
    line = f"POST /servers/{connection.instance}/mcp?forged=1 HTTP/1.1".encode()
    assert scene.talk([head_of(line, headers) + body], scene.source()).status == 202
    (seen,) = scene.script.seen
    assert (seen.method, seen.path, seen.body) == ("POST", "/mcp", document)
    assert {name.lower(): value for name, value in seen.headers} == {
        "host": f"localhost:{scene.script.port}",
        "accept": connection.headers["Accept"],
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(document)),
        "mcp-toolbox-connection": connection.uid,
    }
    assert len(seen.headers) == 6


def test_a_body_under_a_method_without_one_goes_nowhere(scene: Scene) -> None:
    scene.script.seen.clear()
    connection = scene.world.connect(scene.world.instance(scene.script.port))
    hidden = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for method in ("GET", "DELETE", "OPTIONS"):
        headers = [("Host", HOST), *connection.headers.items(), ("Content-Length", str(len(hidden)))]
        line = f"{method} /servers/{connection.instance}/mcp HTTP/1.1".encode()
        assert scene.talk([head_of(line, headers) + hidden], scene.source()).status == 202
    assert [(seen.method, seen.body) for seen in scene.script.seen] == [("GET", b""), ("DELETE", b""), ("OPTIONS", b"")]
