"""The watch of metadata, over HTTP: where it begins, where it goes on, and what it makes of every way to end."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from support.async_poll import until
from support.reconcilers.fake_kube import failure
from toolbox_operator.api.meta import Body
from toolbox_operator.kube.api import NAMESPACES
from toolbox_operator.kube.cache import EventType
from toolbox_operator.kube.metadata import LIST, OBJECT, RETRY_FIRST, MetadataWatch
from toolbox_operator.kube.rest import KubeRest
from toolbox_operator.runtime import SystemClock

pytestmark = pytest.mark.component

Script = list[dict[str, Any] | bytes | None]
"""What one watch delivers, in order; None: nothing more, and the stream stays open. It ends after the last."""


def namespace(name: str, version: int, **labels: str) -> dict[str, Any]:
    """As the API server sends it: with more than anybody asks for."""
    metadata = {"name": name, "resourceVersion": str(version), "labels": labels, "managedFields": [{"manager": "x"}]}
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}


def event(type_: str, name: str, version: int, **labels: str) -> dict[str, Any]:
    return {"type": type_, "object": namespace(name, version, **labels)}


BOOKMARK = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "90"}}}
EXPIRED = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}
BROKEN = {"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcd is away"}}


@dataclass
class ApiServer:
    """Lists and watches as told. `asked` is every request: its `Accept` and its query."""

    pages: list[list[dict[str, Any]] | None] = field(default_factory=lambda: [None])
    """Of no object at all there is no list, only null."""
    version: int = 10
    scripts: list[Script | web.Response] = field(default_factory=list[Any])
    """For one watch each; after the last, watches stay open and silent."""
    refusals: list[web.Response] = field(default_factory=list[web.Response])
    """Answers to lists, before they work."""
    hold: asyncio.Event | None = None
    """Lists that are not refused are answered once it is set."""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list[tuple[str, dict[str, str]]])
    times: list[float] = field(default_factory=list[float])
    """When each request of `asked` came."""
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.asked.append((request.headers["Accept"], query))
        self.times.append(asyncio.get_running_loop().time())
        return await (self._watch(request) if "watch" in query else self._list(query))

    async def _list(self, query: dict[str, str]) -> web.Response:
        if self.refusals:
            return self.refusals.pop(0)
        if self.hold is not None:
            await self.hold.wait()
        page = int(query.get("continue", "0"))
        metadata = {"resourceVersion": str(self.version)}
        if page + 1 < len(self.pages):
            metadata["continue"] = str(page + 1)
        return web.json_response({"metadata": metadata, "items": self.pages[page]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        script: Script | web.Response = self.scripts.pop(0) if self.scripts else [None]
        if isinstance(script, web.Response):
            return script
        stream = web.StreamResponse()
        await stream.prepare(request)
        for step in script:
            if step is None:
                await self.done.wait()
            else:
                await stream.write(step if isinstance(step, bytes) else json.dumps(step).encode() + b"\n")
        return stream

    def watches(self) -> list[str]:
        """The versions that watches were opened at."""
        return [query["resourceVersion"] for _, query in self.asked if "watch" in query]

    def lists(self) -> list[dict[str, str]]:
        """The queries of lists."""
        return [query for _, query in self.asked if "watch" not in query]


@dataclass
class Heard:
    """The audience."""

    beginnings: list[Sequence[Body]] = field(default_factory=list[Sequence[Body]])
    events: list[tuple[EventType, str]] = field(default_factory=list[tuple[EventType, str]])

    def begun(self, bodies: Sequence[Body]) -> None:
        self.beginnings.append(bodies)

    def changed(self, type_: EventType, body: Body) -> None:
        self.events.append((type_, body["metadata"]["name"]))


@dataclass
class Scene:
    """A running watch, and both its ends."""

    api: ApiServer
    heard: Heard
    watch: MetadataWatch


@pytest.fixture
def api() -> ApiServer:
    return ApiServer()


@asynccontextmanager
async def watching(api: ApiServer, *, listing: bool = True, silence: float = 30.0) -> AsyncGenerator[Scene]:
    """The watch at work."""
    app = web.Application()
    app.router.add_get("/api/v1/namespaces", api.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    configuration.client_session_kwargs = {"trust_env": False}
    heard = Heard()
    try:
        async with KubeRest(configuration) as rest:
            watch = MetadataWatch(
                rest, NAMESPACES, heard, SystemClock(), listing=listing, silence=silence, rng=random.Random(1)
            )
            task = asyncio.create_task(watch.run())
            try:
                yield Scene(api, heard, watch)
            finally:
                assert not task.done(), "it never ends by itself"
                task.cancel()
                await asyncio.wait([task])
    finally:
        api.done.set()
        await runner.cleanup()


async def test_it_asks_for_metadata_alone_lists_every_page_and_goes_on_from_there(api: ApiServer) -> None:
    api.pages = [[namespace("a", 1, team="x")], [namespace("b", 2)]]
    api.scripts = [[event("ADDED", "c", 11), event("MODIFIED", "a", 12), event("DELETED", "b", 13), None]]
    async with watching(api) as scene:
        await until("events", lambda: len(scene.heard.events) == 3)
        assert scene.watch.begun.is_set()
        assert scene.watch.down_for() == 0.0
    assert scene.heard.beginnings == [
        [{"metadata": {"name": "a", "labels": {"team": "x"}}}, {"metadata": {"name": "b", "labels": {}}}]
    ]
    assert scene.heard.events == [("ADDED", "c"), ("MODIFIED", "a"), ("DELETED", "b")]
    assert [accept for accept, _ in api.asked] == [LIST, LIST, OBJECT]
    assert api.watches() == ["10"]
    assert api.asked[-1][1]["allowWatchBookmarks"] == "true"
    assert 0 < int(api.asked[-1][1]["timeoutSeconds"]) <= 300


async def test_without_a_list_it_asks_for_no_more_than_where_to_begin(api: ApiServer) -> None:
    api.pages = [[namespace("a", 1)], [namespace("b", 2)]]
    async with watching(api, listing=False) as scene:
        await until("a watch", lambda: bool(api.watches()))
    assert api.lists() == [{"limit": "1"}]
    assert scene.heard.beginnings == [()]
    assert api.watches() == ["10"]


@pytest.mark.parametrize("page", [{}, {"items": {}}, {"items": []}], ids=["nothing", "no list", "no version"])
async def test_what_is_no_complete_list_is_no_beginning(api: ApiServer, page: dict[str, Any]) -> None:
    api.refusals = [web.json_response({"metadata": {}, **page})]
    async with watching(api) as scene:
        await until("refused", lambda: scene.watch.down_for() > 0.0)
        assert scene.heard.beginnings == []
        await until("begun", scene.watch.begun.is_set)
    assert scene.heard.beginnings == [[]]


async def test_a_watch_that_ends_is_opened_again_where_it_was(api: ApiServer) -> None:
    api.scripts = [[event("ADDED", "a", 11)], [BOOKMARK], [None]]
    async with watching(api) as scene:
        await until("the third watch", lambda: len(api.watches()) == 3)
    assert api.watches() == ["10", "11", "90"]
    assert len(api.lists()) == len(scene.heard.beginnings) == 1
    assert scene.heard.events == [("ADDED", "a")], "a bookmark is no event of an object"


@pytest.mark.parametrize("end", [[EXPIRED], failure(410, "Expired")], ids=["in an event", "as an answer"])
async def test_where_it_was_is_no_longer_known_it_begins_anew(api: ApiServer, end: Script | web.Response) -> None:
    api.scripts = [[event("ADDED", "a", 11)], end, [None]]
    async with watching(api) as scene:
        await until("the second watch", lambda: len(api.watches()) == 2)
        api.version = 20
        await until("another beginning", lambda: len(scene.heard.beginnings) == 2)
        await until("the third watch", lambda: len(api.watches()) == 3)
        assert scene.watch.down_for() == 0.0
    assert api.watches() == ["10", "11", "20"]


async def test_a_list_older_than_what_was_seen_is_not_believed(api: ApiServer) -> None:
    api.scripts = [[event("ADDED", "a", 30)], [EXPIRED], [None]]
    async with watching(api) as scene:
        await until("a list that is refused", lambda: len(api.lists()) >= 3)
        assert len(scene.heard.beginnings) == 1
        assert scene.watch.down_for() > 0.0
        api.version = 31
        await until("a newer one", lambda: len(scene.heard.beginnings) == 2)
        await until("a watch", lambda: scene.watch.down_for() == 0.0)
    assert api.watches() == ["10", "30", "31"]


async def test_a_watch_that_falls_silent_is_opened_again_where_it_was(api: ApiServer) -> None:
    api.scripts = [[event("ADDED", "a", 11), None], [event("ADDED", "b", 12), None]]
    async with watching(api, silence=0.2) as scene:
        await until("both", lambda: len(scene.heard.events) == 2)
    assert api.watches()[:2] == ["10", "11"]
    assert len(scene.heard.beginnings) == 1


@pytest.mark.parametrize(
    "end",
    [
        [BROKEN],
        [b"<html>\n"],
        [b'{"type": "ADDED"}\n'],
        [b'["ADDED"]\n'],
        [b'{"type": "ADDED", "object": {"metadata": {"name": "x", "resourceVersion": "many"}}}\n'],
        failure(500, "InternalError"),
        failure(403, "Forbidden"),
    ],
    ids=["an error", "no JSON", "no object", "no event", "no version", "500", "403"],
)
async def test_a_watch_that_breaks_counts_as_down_and_is_opened_again_where_it_was(
    api: ApiServer, end: Script | web.Response
) -> None:
    api.scripts = [end, [event("ADDED", "a", 11), None]]
    async with watching(api) as scene:
        await until("down", lambda: scene.watch.down_for() > 0.0)
        await until("an event", lambda: scene.heard.events == [("ADDED", "a")])
        assert scene.watch.down_for() == 0.0
    assert api.watches() == ["10", "10"]
    assert len(scene.heard.beginnings) == 1


async def test_a_list_that_is_refused_is_tried_again_when_the_server_wants_it(api: ApiServer) -> None:
    api.refusals = [failure(403, "Forbidden"), failure(429, "TooManyRequests", **{"Retry-After": "1"})]
    api.hold = asyncio.Event()
    async with watching(api) as scene:
        await until("asked once more", lambda: len(api.lists()) == 3)
        assert not scene.watch.begun.is_set()
        assert scene.watch.down_for() > 0.0
        assert api.times[2] - api.times[1] >= 1.0
        api.hold.set()
        await until("begun", scene.watch.begun.is_set)


async def test_a_list_that_expires_while_it_is_read_starts_over(api: ApiServer) -> None:
    api.refusals = [failure(410, "Expired")]
    api.pages = [[namespace("a", 1)], [namespace("b", 2)]]
    async with watching(api) as scene:
        await until("begun", scene.watch.begun.is_set)
    assert len(scene.heard.beginnings[0]) == 2


async def test_watches_that_end_at_once_are_no_storm(api: ApiServer) -> None:
    api.scripts = [[], [], [], [None]]
    async with watching(api):
        await until("the fourth", lambda: len(api.watches()) == 4)
    _, first, *_, fourth = api.times
    # Half of each pause at least: once, twice and four times the first.
    assert fourth - first > RETRY_FIRST * (1 + 2 + 4) / 2 * 0.9


async def test_an_event_as_large_as_objects_can_be_is_read(api: ApiServer) -> None:
    large = event("ADDED", "large", 11)
    large["object"]["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "x" * 1_500_000}
    api.scripts = [[large, event("ADDED", "b", 12), None]]
    async with watching(api) as scene:
        await until("both", lambda: [name for _, name in scene.heard.events] == ["large", "b"])
