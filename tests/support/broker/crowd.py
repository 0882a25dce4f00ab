"""Processes and clients by the hundred: each marks all it says as its own, and looks whose all is that it hears."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import aiohttp

from support.async_poll import until
from support.broker.programs import Process, frame
from support.gateway.mcp_http import request
from support.gateway.world import Connection
from toolbox_dtma.link.broker import OpenSession

SECONDS = 100.0
_SIZES = (0, 100, 3_000, 20_000)
_PIECES = (1, 50, 4_000, 60_000)
_ERRORS = 2


def marked(owner: str, size: int) -> dict[str, Any]:
    """A mark of which every few bytes say whose it is."""
    return {"of": owner, "size": size, "pad": f"{owner};" * (size // (len(owner) + 1))}


def check(owner: str, mark: dict[str, Any]) -> None:
    """Raises `AssertionError` unless every byte of a mark is this owner's."""
    assert mark["of"] == owner, f"{owner} heard {mark['of']}"
    assert mark == marked(owner, mark["size"]), f"{owner} heard its own mark with something else in it"


class Member:
    """A process: answers calls in any order, reports progress, asks its client back, writes in pieces of any size."""

    def __init__(self, name: str, asked: OpenSession, chance: random.Random) -> None:
        self.name = name
        self.asked = asked
        self.client = ""
        """Who shook hands."""
        self.task: asyncio.Task[None] | None = None
        self._chance = chance
        self._ours, self.broker_end = socket.socketpair()
        self._out = bytearray()
        self._more = asyncio.Event()
        self._questions = itertools.count(1)
        self._notes = itertools.count(1)
        self._asked: dict[str, asyncio.Future[None]] = {}

    def begin(self) -> None:
        """Run, in the present event loop."""
        self.task = asyncio.create_task(self._run())

    def kill(self) -> None:
        """See `Process`."""
        with suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)

    async def _run(self) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=self._ours, limit=1 << 20)
        try:
            async with asyncio.TaskGroup() as work:
                pump = work.create_task(self._pump(writer))
                calls: list[asyncio.Task[None]] = []
                while line := await _line(reader):
                    if (call := self._heard(json.loads(line))) is not None:
                        calls.append(work.create_task(self._work(call)))
                for each in (pump, *calls):
                    each.cancel()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _heard(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """A call that is to be worked on; everything else is done with."""
        members: dict[str, Any] = message.get("params") or message.get("result") or {}
        if message.get("method") == "initialize":
            self.client = members["clientInfo"]["name"]
            assert self.client.startswith(f"{self.asked.connection}/"), "a client of somebody else's"
            info = {"name": self.name, "version": "1"}
            result: dict[str, Any] = {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": info,
            }
            self._say({"id": message["id"], "result": {**result, "mark": self._mark()}})
            return None
        check(self.client, members["mark"])
        if "result" in message:
            self._asked.pop(message["id"]).set_result(None)
        return message if message.get("method") == "tools/call" else None

    async def _work(self, call: dict[str, Any]) -> None:
        """Steps, notes and questions in any order, and then the answer."""
        params = call["params"]
        wanted: dict[str, int] = params["arguments"]
        todo = [kind for kind, number in wanted.items() for _ in range(number)]
        self._chance.shuffle(todo)
        step = 0
        for kind in todo:
            await asyncio.sleep(self._chance.random() * 0.01)
            if kind == "steps":
                where = {"progressToken": params["_meta"]["progressToken"], "progress": step}
                self._say({"method": "notifications/progress", "params": {**where, "mark": self._mark()}})
                step += 1
            elif kind == "notes":
                note = {"number": next(self._notes), "mark": self._mark()}
                self._say({"method": "notifications/message", "params": note})
            else:
                id_ = str(next(self._questions))
                answer = self._asked[id_] = asyncio.get_running_loop().create_future()
                self._say({"id": id_, "method": "roots/list", "params": {"mark": self._mark()}})
                await answer
        self._say({"id": call["id"], "result": {"content": [], "steps": step, "mark": self._mark()}})

    def _mark(self) -> dict[str, Any]:
        return marked(self.name, self._chance.choice(_SIZES))

    def _say(self, document: dict[str, Any]) -> None:
        self._out += json.dumps({"jsonrpc": "2.0", **document}).encode() + b"\n"
        self._more.set()

    async def _pump(self, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                await self._more.wait()
                self._more.clear()
                while self._out:
                    size = self._chance.choice(_PIECES)
                    writer.write(frame(bytes(self._out[:size])))
                    del self._out[:size]
                    if self._chance.random() < 0.1:
                        writer.write(frame(f"{self.name} complains\n".encode(), _ERRORS))
                    await writer.drain()
                    # Others have their turn between any two pieces.
                    await asyncio.sleep(0)


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next line; empty once the broker has closed its end, in whichever way."""
    try:
        return await reader.readline()
    except OSError:
        return b""


class Crowd:
    """A `Program` whose processes are members, all in the event loop that it was made in."""

    def __init__(self, seed: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._seed = seed
        self.members: list[Member] = []

    def __call__(self, asked: OpenSession) -> Process:
        number = len(self.members)
        member = Member(f"process-{number}", asked, random.Random(f"{self._seed}.{number}"))
        self.members.append(member)
        self._loop.call_soon_threadsafe(member.begin)
        return member

    async def ended(self) -> None:
        """Wait for the end of all."""
        async with asyncio.timeout(SECONDS):
            await asyncio.wait({member.task for member in self.members if member.task is not None})

    async def leave(self) -> None:
        """End those that still run. Raises what any of them found wrong."""
        tasks = [member.task for member in self.members if member.task is not None]
        for task in tasks:
            task.cancel()
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(found, Exception):
                raise found


@asynccontextmanager
async def gathered(seed: int) -> AsyncGenerator[Crowd]:
    """A crowd, whose members have all ended at the end, as their clients have."""
    crowd = Crowd(seed)
    try:
        yield crowd
        await crowd.ended()
    finally:
        await crowd.leave()


class Visitor:
    """A client with one session of a connection."""

    def __init__(self, http: aiohttp.ClientSession, connection: Connection, number: int, seed: int) -> None:
        self.name = f"{connection.uid}/{number}"
        self.process = ""
        """Whose answer the handshake got: everything else has to be of the same."""
        self._http = http
        self._url = connection.url
        self._headers = connection.headers
        self._chance = random.Random(f"{seed}.{self.name}")
        self._notes: list[int] = []
        self._answered: list[int] = []

    async def visit(self) -> None:
        """Begin, make calls at the same time, with the same ids as everybody, and end. Raises `AssertionError`."""
        async with asyncio.timeout(SECONDS):
            await self._shake_hands()
            listens = self._chance.random() < 0.6
            async with asyncio.TaskGroup() as tasks:
                if listens:
                    heard = asyncio.Event()
                    tasks.create_task(self._listen(heard))
                    await heard.wait()
                wanted = [self._wanted() for _ in range(self._chance.randint(1, 4))]
                calls = [
                    # What is on its way to who hangs up is lost: without a listener that might be a question.
                    self._call(id_, each, desert=listens and self._chance.random() < 0.2)
                    for id_, each in enumerate(wanted)
                ]
                await asyncio.gather(*calls)
                # Those of calls that were left run on.
                for seen, kind in ((self._notes, "notes"), (self._answered, "asks")):
                    all_of_them = [*range(1, sum(each[kind] for each in wanted) + 1)]
                    await until(
                        kind, lambda seen=seen: sorted(seen), lambda got, all=all_of_them: got == all, seconds=SECONDS
                    )
                async with self._http.delete(self._url, headers=self._headers) as ended:
                    assert ended.status == 204, await ended.text()

    def _wanted(self) -> dict[str, int]:
        return {kind: self._chance.randrange(3) for kind in ("steps", "notes", "asks")}

    async def _shake_hands(self) -> None:
        info = {"name": self.name, "version": "1"}
        hello: dict[str, Any] = {"protocolVersion": "2025-11-25", "capabilities": {"roots": {}}, "clientInfo": info}
        async with self._http.post(self._url, json=request("initialize", hello), headers=self._headers) as answer:
            assert answer.status == 200, await answer.text()
            self._headers = {**self._headers, "Mcp-Session-Id": answer.headers["Mcp-Session-Id"]}
            result = (await answer.json())["result"]
        self.process = result["serverInfo"]["name"]
        check(self.process, result["mark"])
        await self._send({"method": "notifications/initialized", "params": {"mark": self._mark()}})

    async def _send(self, document: dict[str, Any]) -> None:
        body = {"jsonrpc": "2.0", **document}
        async with self._http.post(self._url, json=body, headers=self._headers) as answer:
            assert answer.status == 202, await answer.text()

    def _mark(self) -> dict[str, Any]:
        return marked(self.name, self._chance.choice(_SIZES))

    async def _listen(self, heard: asyncio.Event) -> None:
        async with self._stream("GET") as messages:
            heard.set()
            async for message in messages:
                await self._other(message)

    async def _call(self, id_: int, wanted: dict[str, int], *, desert: bool) -> None:
        params = {"name": "work", "arguments": wanted, "_meta": {"progressToken": id_}, "mark": self._mark()}
        steps: list[int] = []
        result: dict[str, Any] | None = None
        async with self._stream("POST", request("tools/call", params, id_)) as messages:
            async for message in messages:
                if message.get("method") == "notifications/progress":
                    self._own(message)
                    assert message["params"]["progressToken"] == id_
                    steps.append(message["params"]["progress"])
                elif "method" in message:
                    await self._other(message)
                else:
                    self._own(message)
                    assert message["id"] == id_ and result is None
                    result = message["result"]
                if desert:
                    return
        assert result is not None and result["steps"] == wanted["steps"]
        assert steps == [*range(wanted["steps"])]

    def _own(self, message: dict[str, Any]) -> None:
        check(self.process, (message.get("params") or message["result"])["mark"])

    async def _other(self, message: dict[str, Any]) -> None:
        """A note or a question, on whichever stream."""
        self._own(message)
        if message["method"] == "roots/list":
            await self._send({"id": message["id"], "result": {"roots": [], "mark": self._mark()}})
            self._answered.append(int(message["id"]))
        else:
            assert message["method"] == "notifications/message", message["method"]
            self._notes.append(message["params"]["number"])

    @asynccontextmanager
    async def _stream(self, method: str, body: Any = None) -> AsyncGenerator[AsyncIterator[dict[str, Any]]]:
        async with self._http.request(method, self._url, json=body, headers=self._headers) as response:
            assert response.status == 200, await response.text()
            async with aclosing(_messages(response)) as messages:
                yield messages


async def _messages(response: aiohttp.ClientResponse) -> AsyncGenerator[dict[str, Any]]:
    if response.content_type == "text/event-stream":
        async for line in response.content:
            if line.startswith(b"data:"):
                yield json.loads(line[5:])
    else:
        yield await response.json()
