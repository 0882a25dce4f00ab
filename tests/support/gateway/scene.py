"""Who an attack is made by and at: connections of every standing, their sessions, and one recording server."""

from __future__ import annotations

import datetime
import json
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx
from aiohttp import web

from support.gateway.attack_requests import CANARY
from support.gateway.mcp_http import request
from support.gateway.mcp_servers import Answer, ScriptedServer, Seen, accepted, scripted_server
from support.gateway.raw_http import Reply, head_of, talk
from support.gateway.tls import HOST
from support.gateway.world import Connection, World, credential, restricted, running_world
from toolbox_dtma.link.messages import Surface
from toolbox_dtma.wire import Expose, NameFilter

SURFACE = Surface(
    tools=("get_time", "get_forged"), prompts=("greet", "forged"), resources=("docs://one", "docs://forged")
)
LIMITED = restricted("get_*", deny=("*forged*",))
"""What most attacks try to get around: of the tools only get_time."""
NARROW = Expose(
    tools=LIMITED.tools, prompts=NameFilter(allow=("greet",)), resources=NameFilter(allow=("docs://one", "docs://o*"))
)
"""The same for every kind of name."""

STREAMING = ("limited", "open", "elsewhere", "revoked")
"""Who has a stream of HTTP+SSE open."""


def _opening(issued: list[str]) -> Answer:
    """A session of its own for everybody, and an event to resume by."""

    async def answer(_request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        issued.append(f"up-{len(issued)}")
        headers = {"Content-Type": "text/event-stream", "Mcp-Session-Id": issued[-1]}
        return web.Response(body=b"id: 1\ndata: {}\n\n", headers=headers)

    return answer


@dataclass
class Scene:
    """A gateway, a server that records, and what an attacker may have got hold of."""

    world: World
    script: ScriptedServer
    connections: dict[str, Connection] = field(default_factory=dict[str, Connection])
    values: dict[str, str] = field(default_factory=dict[str, str])
    """Sessions and event ids, for use in headers."""
    _sources: Iterator[int] = field(default_factory=lambda: count(1))
    _logged: int = 0

    def __post_init__(self) -> None:
        self.context = self.world.tls.client_context()

    def source(self) -> str:
        """An address of loopback that nobody came from yet: its failures are counted, and its lines found, alone."""
        number = next(self._sources)
        return f"127.77.{number // 250}.{number % 250 + 1}"

    def talk(self, pieces: Sequence[bytes], source: str, *, head_only: bool = False) -> Reply:
        """Send pieces from an address and read one answer."""
        return talk(self.world, pieces, context=self.context, source=source, head_only=head_only)

    def logged(self) -> str:
        """What the gateway logged since this was asked last."""
        with self.world.log.open() as log:
            log.seek(self._logged)
            text = log.read()
            self._logged = log.tell()
        return text

    def audited(self, source: str) -> dict[str, Any]:
        """The one line that was logged since, about a request from an address; nothing else may have been logged."""
        (line,) = self.logged().splitlines()
        found: dict[str, Any] = json.loads(line)
        assert found["source"] == source
        for connection in self.connections.values():
            assert connection.token not in line
        assert not any(value in line for value in (*self.values.values(), CANARY))
        return found


def stream_of(scene: Scene, connection: Connection, streams: ExitStack) -> str:
    """Opens a stream of HTTP+SSE, until the end of the stack; the signed part of where it says to POST."""
    plain = streams.enter_context(socket.create_connection((HOST, scene.world.port), 30))
    tls = streams.enter_context(scene.context.wrap_socket(plain, server_hostname=HOST))
    lines = [("Host", HOST), ("Authorization", f"Bearer {connection.token}")]
    tls.sendall(head_of(f"GET /servers/{connection.instance}/sse HTTP/1.1".encode(), lines))
    told = b""
    while b"\n\n" not in told.partition(b"event: endpoint")[2]:
        more = tls.recv(4096)
        assert more, told
        told += more
    return told.partition(b"sessionId=")[2].partition(b"\n")[0].decode()


def _prepare(scene: Scene, streams: ExitStack) -> None:
    world = scene.world
    instance = world.instance(scene.script.port, surface=SURFACE)
    other = world.instance(scene.script.port, surface=SURFACE)
    reborn = world.instance(scene.script.port, surface=SURFACE)
    now = datetime.datetime.now(datetime.UTC)
    people = {
        "limited": world.connect(instance, expose=LIMITED),
        "narrow": world.connect(instance, expose=NARROW),
        "open": world.connect(instance),
        "neighbour": world.connect(instance),
        "elsewhere": world.connect(other),
        "reborn": world.connect(reborn),
        "revoked": world.connect(instance),
        "expired": world.connect(instance),
        "ended": world.connect(instance),
        "rotated": world.connect(instance),
        "away": world.connect(world.instance(scene.script.port, address=None)),
    }
    scene.connections.update(people)
    issued: list[str] = []
    scene.script.answer = _opening(issued)
    with httpx.Client(verify=world.tls.client_context(), trust_env=False, timeout=10) as http:
        for name, connection in people.items():
            for nth in ("", "_2") if name != "away" else ():
                got = http.post(connection.url, json=request("initialize"), headers=connection.headers)
                scene.values[f"session_{name}{nth}"] = got.headers["Mcp-Session-Id"]
                scene.values[f"event_{name}{nth}"] = got.text.partition("id: ")[2].partition("\n")[0]
    for name in STREAMING:
        scene.values[f"stream_{name}"] = stream_of(scene, people[name], streams)
    scene.values["session_raw"] = issued[0]
    scene.script.answer = accepted
    world.change_instance(reborn, incarnation="the-next")
    world.revoke(people["revoked"])
    world.change_grant(people["expired"], expires_at=now)
    # The grace of the old token is over by the clock, though DTMA has not dropped it yet.
    world.change_grant(people["ended"], credentials=(credential(people["ended"].token, now), credential("mtb_next")))
    world.change_grant(people["rotated"], credentials=(credential("mtb_after"),))


@contextmanager
def bare_scene() -> Generator[Scene]:
    """A gateway of its own, so that what it logs is all about attacks, and nobody connected."""
    with running_world() as world, scripted_server() as script:
        yield Scene(world, script)


@contextmanager
def prepared_scene() -> Generator[Scene]:
    """The same with everybody an attacker could want to be."""
    with bare_scene() as scene, ExitStack() as streams:
        _prepare(scene, streams)
        scene.logged()
        yield scene
