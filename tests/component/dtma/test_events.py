"""The event stream: order, resume, scope, heartbeat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from support.dtma.host import DtmaHost, code_of, grant_body, instance_body
from support.dtma.worker import ScriptedWorker, connected
from toolbox_dtma.settings import Bounds

pytestmark = pytest.mark.component


@dataclass
class Sse:
    id: str
    kind: str
    data: dict[str, Any]


class Stream:
    """A reader of server-sent events with a deadline for each."""

    def __init__(self, response: httpx.Response):
        self._lines = response.aiter_lines()
        self.comments: list[str] = []

    async def line(self) -> str:
        async with asyncio.timeout(20):
            return await anext(self._lines)

    async def event(self) -> Sse:
        fields: dict[str, str] = {}
        while True:
            line = await self.line()
            if line.startswith(":"):
                self.comments.append(line)
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                return Sse(fields["id"], fields["event"], json.loads(fields["data"]))

    async def until(self, kind: str, **members: Any) -> Sse:
        while True:
            event = await self.event()
            if event.kind == kind and event.data.items() >= members.items():
                return event


@asynccontextmanager
async def watching(host: DtmaHost, after: str | None = None, last_id: str | None = None) -> AsyncGenerator[Stream]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    params = {"after": after} if after else {}
    async with host.client() as client, client.stream("GET", "/v2/events", params=params, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        stream = Stream(response)
        assert await stream.line() == ": connected"
        yield stream


async def refusal(host: DtmaHost, after: str) -> str:
    async with host.client() as client:
        return code_of(await client.get("/v2/events", params={"after": after}))


async def put(host: DtmaHost, **changes: Any) -> None:
    async with host.client() as client:
        (await client.put("/v2/instances/i-1", json=instance_body(**changes))).raise_for_status()


async def cursor(host: DtmaHost) -> str:
    async with host.client() as client:
        return (await client.get("/v2/instances")).json()["cursor"]


async def test_a_watcher_sees_an_instance_come_and_go(host: DtmaHost, worker: ScriptedWorker) -> None:
    async with watching(host) as stream:
        await put(host)
        first = await stream.until("instance")
        assert first.data["id"] == "i-1"
        assert first.id == f"{(await cursor(host)).split(':')[0]}:{first.data['observed']['seq']}"
        async with host.client() as client:
            await client.delete("/v2/instances/i-1", params={"uid": "uid-1", "namespace": "team-a", "name": "time"})
        assert (await stream.until("deleted")).data == {"id": "i-1", "uid": "uid-1"}


async def test_a_watcher_goes_on_where_it_was_without_loss_or_repetition(host: DtmaHost) -> None:
    start = await cursor(host)
    await put(host, generation=1)
    async with watching(host, after=start) as stream:
        first = await stream.until("instance")
    await put(host, generation=2)
    await put(host, generation=3)
    seen: list[Sse] = []
    async with watching(host, last_id=first.id) as stream:
        while not seen or seen[-1].data["desired"]["generation"] != 3:
            seen.append(await stream.event())
    numbers = [int(event.id.split(":")[1]) for event in seen]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == int(first.id.split(":")[1]) + 1
    assert 2 in [event.data["desired"]["generation"] for event in seen]


async def test_last_event_id_wins_over_after(host: DtmaHost) -> None:
    start = await cursor(host)
    await put(host)
    async with watching(host, after=await cursor(host), last_id=start) as stream:
        assert (await stream.event()).data["id"] == "i-1"


async def test_a_cursor_of_another_boot_is_gone(host: DtmaHost) -> None:
    old = await cursor(host)
    await host.restart()
    assert await refusal(host, old) == "Gone"


async def test_a_cursor_from_the_future_is_gone(host: DtmaHost) -> None:
    boot_id = (await cursor(host)).split(":")[0]
    assert await refusal(host, f"{boot_id}:999999") == "Gone"


@pytest.mark.parametrize("text", ["1", "a:b", "1:-1", "1:2:3", " 1:2"])
async def test_a_malformed_cursor_is_refused(host: DtmaHost, text: str) -> None:
    assert await refusal(host, text) == "Invalid"


async def test_a_cursor_that_fell_out_of_the_ring_is_gone(host: DtmaHost) -> None:
    await host.stop()
    host.bounds = Bounds(event_count=3)
    await host.start()
    start = await cursor(host)
    for generation in range(1, 6):
        await put(host, generation=generation)
    assert await refusal(host, start) == "Gone"


async def test_an_idle_stream_shows_that_it_lives(host: DtmaHost) -> None:
    async with watching(host) as stream:
        assert [await stream.line() for _ in range(3)] == ["", ": heartbeat", ""]


async def test_a_watcher_sees_only_its_owners_events(host: DtmaHost) -> None:
    await host.claimed("cluster-b")
    async with watching(host) as stream:
        async with host.client("cluster-b") as other:
            foreign = instance_body(uid="uid-b", namespace="team-b")
            (await other.put("/v2/instances/i-b", json=foreign)).raise_for_status()
        await put(host)
        assert (await stream.event()).data["id"] == "i-1"


async def test_a_grant_reported_as_pending_is_reported_again_when_it_is_programmed(host: DtmaHost) -> None:
    await put(host)
    async with watching(host) as stream, host.client() as client:
        with host.timed(ack_deadline=0.1):
            answer = await client.put("/v2/grants/c-1", json=grant_body())
        assert code_of(answer) == "AckPending"
        async with connected(ScriptedWorker(), host.socket_path):
            event = await stream.until("grant")
            assert event.data["uid"] == "c-1"
            assert event.data["programmed"] is True
            listed = (await client.get("/v2/grants")).json()["items"][0]
            assert listed["contentHash"] == event.data["contentHash"]


async def test_nothing_is_published_while_nothing_changes(host: DtmaHost, worker: ScriptedWorker) -> None:
    async with watching(host) as stream:
        await put(host)
        ready = await stream.until("instance")
        while ready.data["observed"]["phase"] != "Ready":
            ready = await stream.until("instance")
        probes = worker.probed
        while worker.probed < probes + 3:
            assert (await stream.line()) in ("", ": heartbeat")


async def test_streams_end_when_the_host_stops(host: DtmaHost) -> None:
    async with watching(host) as stream:
        stopping = asyncio.create_task(host.stop())
        with pytest.raises(StopAsyncIteration):
            while True:
                await stream.line()
        await stopping
