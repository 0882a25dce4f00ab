"""One connection to a server and the answer that it carries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from multidict import CIMultiDictProxy

from toolbox_dtma.gateway.upstream.answers import AnswerReader
from toolbox_dtma.gateway.upstream.errors import Broken, Malformed, Silent, UpstreamError
from toolbox_dtma.gateway.upstream.heads import Head

HIGH_WATER = 64 * 1024
"""Bytes of an answer that wait for their reader before the server is held up."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server listens. Only requests to equal origins share connections."""

    host: str
    """An IP address; empty where there is a bridge."""
    port: int
    incarnation: str = ""
    """Tells a server from the one that had the same address before it."""
    bridge: str | None = None
    """Path of the unix socket of the session broker, which speaks for the server."""


class Answer:
    """The answer to one request, from the moment that it is asked for. One task at a time reads it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, idle_seconds: float):
        self._loop = loop
        self._reader = AnswerReader()
        self._parts: list[bytes] = []
        self.buffered = 0
        """Bytes that wait for their reader."""
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._idle = idle_seconds
        self._waits_since = 0.0
        self._cancel: Callable[[], object] | None = None
        self.connection: Connection | None = None

    @property
    def complete(self) -> bool:
        """Whether the server has sent all of it."""
        return self._reader.complete

    @property
    def at_eof(self) -> bool:
        """Whether all of it has been read."""
        return self._reader.complete and not self._parts

    async def head(self) -> None:
        """Wait for status and fields. Raises `UpstreamError`."""
        while self._reader.head is None:
            await self._more()

    @property
    def _head(self) -> Head:
        if self._reader.head is None:
            raise RuntimeError("the head is looked at before it came")
        return self._reader.head

    @property
    def status(self) -> int:
        """Once `head` returned."""
        return self._head.status

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """Once `head` returned."""
        return self._head.headers

    @property
    def length(self) -> int | None:
        """Bytes of the body, once `head` returned; None while only its end will tell."""
        return self._head.length

    async def read(self) -> bytes:
        """What has come of the body since the last time, at least a byte; empty at its end.

        Raises `UpstreamError`, also where the body ends before its end.
        """
        while not self._parts:
            if self._reader.complete:
                return b""
            await self._more()
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.buffered = 0
        if self.connection is not None:
            self.connection.resume()
        return data

    def close(self) -> None:
        """End it now. The connection of a complete answer is left alone."""
        if self._cancel is not None:
            self._cancel()
        if self.connection is not None:
            self.connection.abort()
        self.fail(Broken("closed by the gateway"))

    async def _more(self) -> None:
        """Wait until there is something new."""
        if self._error is not None:
            raise self._error
        self._waits_since = self._loop.time()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connecting(self, cancel: Callable[[], object]) -> None:
        """A connection for it is being made; `cancel` gives that up."""
        self._cancel = cancel

    def received(self, data: bytes) -> bool:
        """Take bytes from the server; whether it should be held up. Raises `Malformed`."""
        part = self._reader.feed(data)
        if part:
            self._parts.append(part)
            self.buffered += len(part)
        if part or self._reader.head is not None:
            self._wake()
        return self.buffered > HIGH_WATER

    def ended(self) -> None:
        """The server closed its side. Raises `Broken` if there should have been more."""
        self._reader.end()
        self._wake()

    def fail(self, error: UpstreamError) -> None:
        """Nothing more will come."""
        if self._error is None and not self._reader.complete:
            self._error = error
            self._wake()

    @property
    def leaves_connection_clean(self) -> bool:
        """Whether another request may follow this complete answer on its connection."""
        head = self._reader.head
        return head is not None and head.reusable and not self._reader.surplus

    def check_silence(self, now: float) -> None:
        """Give up if a reader has waited for too long."""
        if self._waiter is not None and now - self._waits_since > self._idle:
            error = Silent("the server sent nothing for too long")
            self.fail(error)
            if self.connection is not None:
                self.connection.abort()


class Keeper(Protocol):
    """Whose connections they are."""

    def opened(self, connection: Connection) -> None:
        """It may carry its first request."""
        ...

    def released(self, connection: Connection) -> None:
        """It may carry another request."""
        ...

    def lost(self, connection: Connection) -> None:
        """It is closed."""
        ...


class Connection(asyncio.Protocol):
    """A connection that carries one answer at a time."""

    def __init__(self, origin: Origin, keeper: Keeper):
        self.origin = origin
        self._keeper = keeper
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._paused = False
        self.idle_since = 0.0
        """On the clock of the loop."""

    @property
    def usable(self) -> bool:
        """Whether a request may be sent."""
        return self._answer is None and self._transport is not None and not self._transport.is_closing()

    @property
    def answer(self) -> Answer | None:
        """What it carries now."""
        return self._answer

    def send(self, answer: Answer, head: bytes, body: bytes | None) -> None:
        """Send a request, whose answer goes to `answer`."""
        if self._transport is None:
            raise RuntimeError("a connection is used before it is made")
        self._answer = answer
        answer.connection = self
        if not body:
            self._transport.write(head)
        elif len(body) <= HIGH_WATER:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def resume(self) -> None:
        """Let the server go on."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._keeper.opened(self)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        answer = self._answer
        if answer is None:
            # Nobody asked: whatever it is, it must not become the beginning of the next answer.
            self.abort()
            return
        try:
            full = answer.received(data)
        except Malformed as error:
            answer.fail(error)
            self.abort()
            return
        if answer.complete:
            self._finished(answer)
        elif full and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _finished(self, answer: Answer) -> None:
        self._answer = answer.connection = None
        transport = self._transport
        if transport is None:
            return
        self.resume()
        # A server that answers before it took the whole request would take the rest of it for another one.
        if answer.leaves_connection_clean and not transport.get_write_buffer_size() and not transport.is_closing():
            self._keeper.released(self)
        else:
            transport.abort()

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`."""
        answer = self._answer
        if answer is not None:
            try:
                answer.ended()
            except Broken as error:
                answer.fail(error)
            self._answer = answer.connection = None
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.connection = None
            answer.fail(Broken("the connection was lost before the answer was complete"))
        self._transport = None
        self._keeper.lost(self)
