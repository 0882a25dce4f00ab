"""Sends requests to servers, over connections that are kept for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from toolbox_dtma.gateway.upstream.connection import Answer, Connection, Origin
from toolbox_dtma.gateway.upstream.errors import ConnectFailed
from toolbox_dtma.gateway.upstream.heads import request_head


@dataclass(frozen=True, slots=True)
class Patience:
    """Deadlines in seconds."""

    connect: float = 5.0
    kept: float = 4.0
    """How long an unused connection is kept. Servers close theirs after 5 s or more: ours must be gone first, or a
    request meets a closing one."""
    sweep: float = 1.0
    """How often silent servers and unused connections are looked for: deadlines are as exact as this."""


MAX_KEPT = 64
"""Unused connections to one origin."""


class UpstreamClient:
    """No cookies, no redirects, no decoding, nothing from the environment, and nothing is ever sent twice."""

    def __init__(self, patience: Patience | None = None):
        self._loop = asyncio.get_running_loop()
        self._patience = patience or Patience()
        self._connections: set[Connection] = set()
        self._kept: dict[Origin, list[Connection]] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._none_open = asyncio.Event()
        self._none_open.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def kept(self) -> int:
        """Unused connections."""
        return sum(map(len, self._kept.values()))

    def request(
        self, method: str, origin: Origin, path: str, headers: Mapping[str, str], body: bytes | None, *, silence: float
    ) -> Answer:
        """Send a request, on its way when this returns or as soon as there is a connection.

        `silence` is how many seconds the server may send nothing while the answer is awaited. Whoever got the answer
        closes it.
        """
        head = request_head(method, path, headers, None if body is None else len(body))
        answer = Answer(self._loop, silence)
        # A server may close a kept connection at the moment that a request goes over it, which leaves open whether it
        # was taken. All but POST are rare and afford a connection of their own.
        kept = self._take(origin) if method == "POST" else None
        if kept is not None:
            kept.send(answer, head, body)
        else:
            task = self._loop.create_task(self._connect(origin, answer, head, body))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
            answer.connecting(task.cancel)
        return answer

    def _take(self, origin: Origin) -> Connection | None:
        kept = self._kept.get(origin)
        while kept:
            connection = kept.pop()
            if connection.usable and self._loop.time() - connection.idle_since < self._patience.kept:
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: Origin, answer: Answer, head: bytes, body: bytes | None) -> None:
        try:
            async with asyncio.timeout(self._patience.connect):
                connection = await self._connected(origin)
        except (OSError, TimeoutError) as error:
            refused = isinstance(error, ConnectionRefusedError)
            answer.fail(ConnectFailed("the server does not accept connections", refused=refused))
            return
        connection.send(answer, head, body)

    async def _connected(self, origin: Origin) -> Connection:
        """A new connection. Raises `OSError`."""
        connection = Connection(origin, self)
        try:
            await self._reach(connection)
        except BaseException:
            # Given up in the moment in which it was made: uvloop closes it then, and does not tell it.
            connection.connection_lost(None)
            raise
        return connection

    async def _reach(self, connection: Connection) -> None:
        """Have it made to its origin. Raises `OSError`."""
        origin = connection.origin
        if origin.bridge is not None:
            await self._loop.create_unix_connection(lambda: connection, origin.bridge)
        else:
            await self._loop.create_connection(lambda: connection, origin.host, origin.port)

    def opened(self, connection: Connection) -> None:
        """See `Keeper`."""
        connection.idle_since = self._loop.time()
        self._connections.add(connection)
        self._none_open.clear()
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(self._patience.sweep, self._sweep)

    def released(self, connection: Connection) -> None:
        """See `Keeper`."""
        kept = self._kept.setdefault(connection.origin, [])
        connection.idle_since = self._loop.time()
        if len(kept) < MAX_KEPT:
            kept.append(connection)
        else:
            connection.abort()

    def lost(self, connection: Connection) -> None:
        """See `Keeper`."""
        self._connections.discard(connection)
        if not self._connections:
            self._none_open.set()
        kept = self._kept.get(connection.origin, [])
        if connection in kept:
            kept.remove(connection)
        if not kept:
            self._kept.pop(connection.origin, None)

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in tuple(self._connections):
            if connection.answer is not None:
                connection.answer.check_silence(now)
            elif now - connection.idle_since >= self._patience.kept:
                connection.abort()
        self._sweeping = self._loop.call_later(self._patience.sweep, self._sweep) if self._connections else None

    async def close(self) -> None:
        """Abort what runs and close every connection."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for task in tuple(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for connection in tuple(self._connections):
            connection.abort()
        await self._none_open.wait()
