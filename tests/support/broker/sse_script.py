"""A server of the SSE transport that a test speaks for, byte by byte where that matters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from support.broker.programs import INITIALIZED
from toolbox_dtma.link.broker import OpenSession, Upstream

HOST = "127.0.0.1"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 8\r\n\r\nAccepted"
ENDPOINT = "/messages?session_id=7"


class Exchange:
    """One request, and the connection that its answer goes over."""

    def __init__(self, line: str, headers: Mapping[str, str], body: bytes, writer: asyncio.StreamWriter):
        self.method, self.path, _ = line.split(" ")
        self.headers = headers
        self.body = body
        self._writer = writer
        self.answered = asyncio.Event()
        """Set once the connection may carry the next request."""

    @property
    def message(self) -> Any:
        """The body of a POST."""
        return json.loads(self.body)

    def write(self, raw: bytes) -> None:
        """Send bytes of the answer."""
        self._writer.write(raw)

    def answer(self, raw: bytes = ACCEPTED) -> None:
        """Send a whole answer."""
        self.write(raw)
        self.answered.set()

    def refuse(self, status: int, headers: str = "") -> None:
        """Answer with a status and nothing else."""
        self.answer(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{headers}\r\n".encode())

    def event(self, data: str, kind: str = "message") -> None:
        """One event of a stream."""
        self.write(f"event: {kind}\ndata: {data}\n\n".encode())

    def begin(self, endpoint: str = ENDPOINT) -> None:
        """The head of a stream, and its first event."""
        self.write(STREAM)
        self.event(endpoint, "endpoint")

    def say(self, *documents: Any) -> None:
        """Messages, an event each."""
        for document in documents:
            self.event(json.dumps(document))

    def end(self) -> None:
        """Close the connection."""
        self._writer.close()

    async def ended(self) -> None:
        """Wait until the other side has closed the connection."""
        async with asyncio.timeout(10):
            await self.answered.wait()

    @property
    def unsent(self) -> int:
        """Bytes that nobody has taken."""
        return self._writer.transport.get_write_buffer_size()


class SseScript:
    """The server. Its GETs and POSTs are taken one by one."""

    def __init__(self) -> None:
        self.streams: asyncio.Queue[Exchange] = asyncio.Queue()
        self.posts: asyncio.Queue[Exchange] = asyncio.Queue()
        self.accepts = True
        """Whether POSTs are answered by themselves; else `Exchange.answer` does."""
        self.connections = 0
        self.upstream = Upstream(address=HOST, port=1, path="/sse")
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __call__(self, request: OpenSession) -> Upstream:
        """A `Program`: all sessions go to this server."""
        del request
        return self.upstream

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        port = self._server.sockets[0].getsockname()[1]
        self.upstream = Upstream(address=HOST, port=port, path="/sse")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        last: Exchange | None = None
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in head[1:-2])}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                last = Exchange(head[0], headers, body, writer)
                if last.method == "GET":
                    self.streams.put_nowait(last)
                    # Nothing follows on it but its end.
                    await reader.read()
                    return
                self.posts.put_nowait(last)
                if self.accepts:
                    last.answer()
                await last.answered.wait()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            # The other side has gone, or the test is over.
            return
        finally:
            if last is not None:
                last.answered.set()
            self._serving.discard(task)
            writer.close()

    async def stream(self) -> Exchange:
        """The next GET."""
        async with asyncio.timeout(10):
            return await self.streams.get()

    async def post(self) -> Exchange:
        """The next POST."""
        async with asyncio.timeout(10):
            return await self.posts.get()

    async def heard(self) -> Any:
        """The next message."""
        return (await self.post()).message

    async def initialized(self, endpoint: str = ENDPOINT) -> Exchange:
        """The next stream, once a handshake was answered on it."""
        stream = await self.stream()
        stream.begin(endpoint)
        asked = await self.heard()
        assert asked["method"] == "initialize"
        stream.say({"jsonrpc": "2.0", "id": asked["id"], "result": INITIALIZED})
        return stream

    async def close(self) -> None:
        """Stop, and let go of every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


@asynccontextmanager
async def sse_script() -> AsyncGenerator[SseScript]:
    """A server that listens."""
    script = SseScript()
    await script.start()
    try:
        yield script
    finally:
        await script.close()
