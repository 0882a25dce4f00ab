"""A client's connection with bounds: how long and how large a head may be, how long an answer may lie untaken.

aiohttp bounds lines, the number of headers, and idle connections. The rest is here, once for every connection, whatever
the request on it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from toolbox_dtma.gateway.clients import Clients
from toolbox_dtma.gateway.http import AuditedConnection, Refuse
from toolbox_dtma.gateway.settings import ClientBounds
from toolbox_dtma.link.messages import Cut

WRITE_BUFFER_BYTES = 64 * 1024
"""Of ours, per connection; above it the server's side is no longer read. uvloop's own bound over TLS is 512 KiB."""
LINE_BYTES = 8190

_SLOW = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connection(AuditedConnection):
    """aiohttp's connection, watched."""

    __slots__ = (
        "_bounds",
        "_clients",
        "_ended",
        "_head_bytes",
        "_head_timer",
        "_server",
        "_stall_timer",
        "_wire",
        "made",
        "measured",
        "source",
    )

    def __init__(
        self,
        server: Server,
        bounds: ClientBounds,
        clients: Clients,
        refused: Refuse,
        loop: asyncio.AbstractEventLoop,
        ended: Callable[[], None],
        source: str | None = None,
    ):
        """`source` is the address of the client where the transport does not know it."""
        super().__init__(
            server,
            refused,
            loop=loop,
            auto_decompress=False,
            # aiohttp's default is a logger of its own, which would quote requests.
            access_log=cast("Any", None),
            keepalive_timeout=bounds.idle_seconds,
            max_line_size=LINE_BYTES,
            max_field_size=LINE_BYTES,
            max_headers=bounds.headers,
        )
        self._server = server
        self._bounds = bounds
        self._clients = clients
        self._ended = ended
        self.source = source
        self.made = False
        """Whether it became a client's to use; before that, TLS may have failed."""
        self.measured = False
        """Whether a head of this connection may have been too large, though it came in one piece."""
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._wire: asyncio.Transport | None = None
        """`transport` is forgotten as soon as closing begins; this one only when the connection has ended."""

    @property
    def is_draining(self) -> bool:
        """Whether this connection is to end with its present request."""
        return self._server.draining

    @property
    def busy(self) -> bool:
        """Whether a request is being handled or answered."""
        return self._request_in_progress or bool(self._messages)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = True
        self._wire = cast("asyncio.Transport", transport)
        self._wire.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._watch_head()
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wire = None
        self._ended()
        self._unwatch_head()
        self._unwatch_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self.measured = self.measured or self._head_bytes + len(data) > self._bounds.head_bytes
            self._unwatch_head()
        elif data and not self.busy and (self._head_timer is not None or self._waiter is not None):
            self._part_of_a_head(len(data))

    def _part_of_a_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._bounds.head_bytes:
            self._refuse(Cut.HEAD_LARGE, _LARGE)
        elif self._head_timer is None:
            self._watch_head()

    def _watch_head(self) -> None:
        self._head_timer = self._loop.call_later(self._bounds.head_seconds, self._refuse, Cut.HEAD_SLOW, _SLOW)

    def _unwatch_head(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, why: Cut, answer: bytes) -> None:
        self._clients.cut(why)
        self._unwatch_head()
        if self.transport is not None:
            self.transport.write(answer)
        self.force_close()
        self._watch_stall()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_stall()

    def resume_writing(self) -> None:
        self._unwatch_stall()
        super().resume_writing()

    async def start(self) -> None:
        try:
            await super().start()
        finally:
            # Closing waits for what is still to be sent, and no longer belongs to any request.
            self._watch_stall()

    def _watch_stall(self) -> None:
        if self._stall_timer is None and self._wire is not None:
            self._stall_timer = self._loop.call_later(self._bounds.stall_seconds, self._stalled)

    def _unwatch_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _stalled(self) -> None:
        self._stall_timer = None
        if self._wire is not None:
            self._clients.cut(Cut.STALLED)
            self._wire.abort()


class Request(web.BaseRequest):
    """A request whose answer closes the connection once the worker drains, so that the client's next goes elsewhere."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        if cast("Connection", self.protocol).is_draining:
            response.force_close()
            response.headers["Connection"] = "close"


class Server(web.Server):
    """Makes the connections of one worker and knows which are open."""

    def __init__(self, handler: Handler, bounds: ClientBounds, clients: Clients, refused: Refuse):
        super().__init__(self._handle, handler_cancellation=True, request_factory=self._request)
        self._handler = handler
        self._bounds = bounds
        self._clients = clients
        self._refused = refused
        self.draining = False

    def connection(self, ended: Callable[[], None], source: str | None = None) -> Connection:
        """A new connection; `ended` is called when it was made and is lost."""
        return Connection(self, self._bounds, self._clients, self._refused, self._loop, ended, source)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        # A head that came in one piece is complete before its size is known.
        if cast("Connection", request.protocol).measured and _head_size(request) > self._bounds.head_bytes:
            self._clients.cut(Cut.HEAD_LARGE)
            refusal = web.Response(status=431)
            refusal.force_close()
            return refusal
        return await self._handler(request)

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        source = cast("Connection", protocol).source
        return Request(message, payload, protocol, writer, task, self._loop, remote=source)

    @property
    def open(self) -> int:
        """Connections that have not ended."""
        return len(self._connections)

    @property
    def busy(self) -> bool:
        """Whether any connection has a request."""
        return any(cast("Connection", each).busy for each in self._connections)

    def close_idle(self) -> None:
        """Close the connections that have no request."""
        for each in tuple(self._connections):
            if not cast("Connection", each).busy:
                each.force_close()


def _head_size(request: web.BaseRequest) -> int:
    return sum(len(name) + len(value) for name, value in request.raw_headers)
