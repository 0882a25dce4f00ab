"""The connections of a worker that no client makes: to itself, and with the other workers of the gateway."""

from __future__ import annotations

import asyncio

from toolbox_dtma.gateway.clients import Clients, Share
from toolbox_dtma.gateway.connection import Handler, Server
from toolbox_dtma.gateway.http import Refuse
from toolbox_dtma.gateway.http_sse.own import OwnClient
from toolbox_dtma.gateway.http_sse.peers import PeerClient, PeerServer, listen
from toolbox_dtma.gateway.http_sse.reference import new_name
from toolbox_dtma.gateway.settings import ClientBounds

_IDLE_SECONDS = 3600.0
"""Longer than our own clients keep a connection, whatever others are allowed: none is closed under a request."""


class Inside:
    """Both ends of them, as far as they are here. Needs a running loop."""

    def __init__(self, handler: Handler, refused: Refuse, bounds: ClientBounds):
        """`handler` and `refused` are those of clients' requests."""
        bounds = bounds.model_copy(update={"idle_seconds": _IDLE_SECONDS})
        # Each serves a request of a client who is counted already.
        uncounted = Clients(Share(0, 0))
        self.name = new_name()
        self._own_server = Server(handler, bounds, uncounted, refused)
        self._peer_server = PeerServer(handler, bounds, uncounted, refused)
        self._listening: asyncio.Server | None = None
        self.own = OwnClient(self._own_server)
        self.peers = PeerClient()

    async def start(self) -> None:
        """Listen for the other workers. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_unix_server(
            lambda: self._peer_server.connection(lambda: None), sock=listen(self.name)
        )

    async def close(self, seconds: float) -> None:
        """End them; what is being answered may take so long."""
        if self._listening is not None:
            self._listening.close()
        await self.own.close()
        await self.peers.close()
        await self._own_server.shutdown(seconds / 2)
        await self._peer_server.shutdown(seconds / 2)
