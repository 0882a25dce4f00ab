"""The doors of HTTP+SSE, in two workers that know each other by a socket."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import structlog
from aiohttp import web

from support.async_poll import until
from toolbox_dtma.gateway.admission import door_of
from toolbox_dtma.gateway.clients import Clients, Share
from toolbox_dtma.gateway.connection import Server
from toolbox_dtma.gateway.exchanges import Exchanges
from toolbox_dtma.gateway.http_sse.front import MAX_STREAMS_OF_CONNECTION, Front
from toolbox_dtma.gateway.http_sse.inside import Inside
from toolbox_dtma.gateway.http_sse.peers import SOURCE, PeerClient
from toolbox_dtma.gateway.http_sse.reference import Place, binding_of, new_name, reference
from toolbox_dtma.gateway.refusal import Refusal
from toolbox_dtma.gateway.settings import ClientBounds
from toolbox_dtma.gateway.state import PolicyState
from toolbox_dtma.gateway.stepping import Stepper
from toolbox_dtma.link.messages import Change, GrantPolicy, InstanceRoute, KeyRing, SigningKey, Snapshot
from toolbox_dtma.wire import Credential, Expose

GRANT = GrantPolicy(
    uid="g",
    instance="i",
    credentials=(Credential(value=hashlib.sha256(b"t").hexdigest()),),
    server_expose=Expose(),
    expose=Expose(),
)
ROUTE = InstanceRoute(id="i", address="127.0.0.1", port=1, path="/mcp", incarnation="x", state="running")
RING = KeyRing(signing="k", keys=(SigningKey(kid="k", secret="A" * 43),))
HEADERS = {"Authorization": "Bearer t"}


@dataclass
class Worker:
    """One worker, whose /mcp remembers who asked and answers nothing but pings."""

    state: PolicyState
    asked: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    inside: Inside = field(init=False)
    front: Front = field(init=False)
    server: Server = field(init=False)
    url: str = ""

    def __post_init__(self) -> None:
        def refused(_request: web.BaseRequest, refusal: Refusal) -> web.StreamResponse:
            return refusal.response()

        self._exchanges = Exchanges(unix_clock=lambda: 0.0)
        self.inside = Inside(self._handle, refused, ClientBounds())
        clients, log = Clients(Share(1000, 1000)), structlog.get_logger()
        self.front = Front(
            self.inside, self.state, clients, Stepper(), log, unix_clock=lambda: 0.0, comment_seconds=0.01
        )
        self.server = Server(self._handle, ClientBounds(), clients, refused)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        door = door_of(request.raw_path)
        if door == "mcp":
            self.asked.append((request.method, request.remote))
            if request.method != "POST":
                return web.Response(status=405)
            return web.json_response({"jsonrpc": "2.0", "id": json.loads(await request.read())["id"], "result": {}})
        with self._exchanges.enter(self.state.authenticate("t")[0], request.transport) as exchange:
            try:
                return await self.front.answer(request, exchange, door)
            except Refusal as refusal:
                return refusal.response()


@asynccontextmanager
async def running() -> AsyncGenerator[Worker]:
    state = PolicyState(unix_clock=lambda: 0.0, monotonic=lambda: 0.0, grace_seconds=30)
    change = Change(keyring=RING, grants=(GRANT,), instances=(ROUTE,))
    state.apply(Snapshot(revision=1, part=0, parts=1, change=change))
    worker = Worker(state)
    await worker.inside.start()
    listening = await asyncio.get_running_loop().create_server(
        lambda: worker.server.connection(lambda: None), "127.0.0.1", 0
    )
    worker.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield worker
    finally:
        listening.close()
        await worker.server.shutdown(0.1)
        await worker.front.close(1)
        await worker.inside.close(0.1)


@pytest.fixture
async def workers() -> AsyncGenerator[tuple[Worker, Worker]]:
    async with running() as one, running() as other:
        yield one, other


@pytest.fixture
async def http() -> AsyncGenerator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(headers=HEADERS, trust_env=False, timeout=10, limits=limits) as client:
        yield client


class Stream:
    """The lines of a stream."""

    def __init__(self, answer: httpx.Response):
        self._lines = answer.aiter_lines()

    async def data(self) -> str:
        """Of the next event."""
        return (await self.line("data: "))[6:]

    async def line(self, start: str) -> str:
        """The next that begins like this."""
        async with asyncio.timeout(10):
            async for line in self._lines:
                if line.startswith(start):
                    return line
        raise AssertionError("the stream has ended")


@asynccontextmanager
async def opened(http: httpx.AsyncClient, worker: Worker) -> AsyncGenerator[tuple[Stream, str]]:
    """A stream and where it says to POST."""
    async with http.stream("GET", f"{worker.url}/servers/i/sse") as answer:
        assert answer.status_code == 200
        stream = Stream(answer)
        yield stream, await stream.data()


def ping(id: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": "ping"}


async def test_a_silent_stream_shows_now_and_then_that_it_is_there(
    workers: tuple[Worker, Worker], http: httpx.AsyncClient
) -> None:
    async with opened(http, workers[0]) as (stream, _):
        for _ in range(3):
            assert await stream.line(":") == ": "


async def test_a_message_reaches_its_stream_by_the_other_worker_with_the_address_of_its_client(
    workers: tuple[Worker, Worker], http: httpx.AsyncClient
) -> None:
    own, other = workers
    async with opened(http, own) as (stream, told):
        for number, worker in enumerate((own, other, other)):
            assert (await http.post(f"{worker.url}{told}", json=ping(number))).status_code == 202
            assert json.loads(await stream.data())["id"] == number
        large = {**ping("large"), "params": {"text": "x" * 3_000_000}}
        assert (await http.post(f"{other.url}{told}", json=large)).status_code == 202
        assert json.loads(await stream.data())["id"] == "large"
    assert set(own.asked) == {("POST", "127.0.0.1")} and other.asked == []


async def test_what_the_other_worker_refuses_is_refused_with_its_words(
    workers: tuple[Worker, Worker], http: httpx.AsyncClient
) -> None:
    own, other = workers
    async with opened(http, own) as (_, told):
        for url in (own.url, other.url):
            answer = await http.post(f"{url}{told}", content=b"{", headers={"Content-Type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32700)
            assert answer.headers["Cache-Control"] == "no-store"
    for url in (own.url, other.url):
        assert (await http.post(f"{url}{told}", json=ping())).status_code == 404


async def test_a_worker_that_never_was_has_no_streams(workers: tuple[Worker, Worker], http: httpx.AsyncClient) -> None:
    ids = workers[0].state.sessions
    assert ids is not None
    told = reference(ids, Place(new_name(), new_name()), binding_of("g", "i"), 1)
    assert (await http.post(f"{workers[0].url}{told}", json=ping())).status_code == 404


async def test_what_a_peer_passed_on_is_not_passed_on_again(
    workers: tuple[Worker, Worker], http: httpx.AsyncClient
) -> None:
    own, other = workers
    async with opened(http, own) as (_, told):
        # The other worker is asked for a stream that it does not have.
        headers = {**HEADERS, "Host": "h", "Content-Type": "application/json", SOURCE: "192.0.2.1"}
        origin = PeerClient.origin(Place(other.inside.name, ""))
        answer = own.inside.peers.request("POST", origin, told, headers, json.dumps(ping()).encode(), silence=10)
        await answer.head()
        assert answer.status == 404
        answer.close()
    assert own.asked == []


async def test_a_connection_has_only_so_many_streams_and_the_end_of_one_makes_room(
    workers: tuple[Worker, Worker], http: httpx.AsyncClient
) -> None:
    own, other = workers
    url = f"{own.url}/servers/i/sse"
    async with AsyncExitStack() as streams:
        for _ in range(MAX_STREAMS_OF_CONNECTION - 1):
            await streams.enter_async_context(opened(http, own))
        async with opened(http, own):
            refused = await http.get(url)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "2")
            async with opened(http, other):
                pass
        streams_left = own.front._streams  # pyright: ignore[reportPrivateUsage]
        await until("one is gone", lambda: len(streams_left) == MAX_STREAMS_OF_CONNECTION - 1)
        async with opened(http, own):
            pass
