"""How a worker hands a POST to the one that has its stream: a socket in the abstract namespace, for its own user only.

Its name is the worker's, which no other process ever has, and ends with the process: nothing is left to clean up, and
nothing has to be handed over when a worker or the supervisor is replaced. Names can be seen by everybody and have no
permissions, so both sides ask the kernel who the other one is (unix(7), SO_PEERCRED).
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from toolbox_dtma.gateway.connection import Connection as ClientConnection
from toolbox_dtma.gateway.connection import Request, Server
from toolbox_dtma.gateway.http_sse.reference import Place
from toolbox_dtma.gateway.upstream.client import UpstreamClient
from toolbox_dtma.gateway.upstream.connection import Connection, Origin

SOURCE = "Mcp-Toolbox-Source"
"""The address of the client, believed from a peer only."""
BACKLOG = 1024

_CREDENTIALS = struct.Struct("3i")


def address_of(worker: str) -> str:
    """Where a worker listens for the others."""
    return f"\0magic-toolbox-gateway/{worker}"


def listen(worker: str) -> socket.socket:
    """The socket of this worker. Raises `OSError`."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(address_of(worker))
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def is_own_user(peer: socket.socket) -> bool:
    """Whether a process of this user is at the other end: it connected, or it listens."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return cast("tuple[int, int, int]", _CREDENTIALS.unpack(raw))[1] == os.getuid()


class PeerRequest(Request):
    """A request that another worker passes on."""


class _PeerConnection(ClientConnection):
    """A connection that only the gateway's user can use."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not is_own_user(transport.get_extra_info("socket")):
            cast("asyncio.Transport", transport).abort()


class PeerServer(Server):
    """What other workers connect to."""

    def connection(self, ended: Callable[[], None], source: str | None = None) -> ClientConnection:
        """See `Server`."""
        return _PeerConnection(self, self._bounds, self._clients, self._refused, self._loop, ended, source)

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        source = message.headers.get(SOURCE, "")
        return PeerRequest(message, payload, protocol, writer, task, self._loop, remote=source)


class PeerClient(UpstreamClient):
    """Sends requests to other workers."""

    @staticmethod
    def origin(place: Place) -> Origin:
        """The worker that has a stream."""
        return Origin("", 0, place.worker)

    async def _reach(self, connection: Connection) -> None:
        """See `UpstreamClient`: the incarnation of an origin is the worker's name. Raises `OSError`."""
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.setblocking(False)
            # At once or never: where the other's queue is full, BlockingIOError says so.
            peer.connect(address_of(connection.origin.incarnation))
            if not is_own_user(peer):
                raise PermissionError("another user listens there")
            await self._loop.create_unix_connection(lambda: connection, sock=peer)
        except BaseException:
            peer.close()
            raise
