"""Accepts connections for one worker: counted before anything is spent on them, then TLS as it is now."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from functools import partial

from toolbox_dtma.gateway.clients import Clients
from toolbox_dtma.gateway.connection import Server
from toolbox_dtma.link.messages import Cut

ACCEPTS = 64
"""Connections taken in one go, before what is running gets its turn again."""
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
EXHAUSTED_PAUSE = 0.25
"""Seconds. The connection stays in the kernel's queue, and trying at once would do nothing else for ever."""
SHUTDOWN_SECONDS = 5.0
"""For a client's half of the end of TLS."""


class Listener:
    """Takes connections from a socket that other processes may share."""

    def __init__(
        self,
        listening: socket.socket,
        server: Server,
        clients: Clients,
        *,
        context: Callable[[], ssl.SSLContext | None],
        handshake_seconds: float,
    ):
        """`context` is asked at each connection; None from it means plain HTTP. The socket must not block."""
        self._listening = listening
        self._server = server
        self._clients = clients
        self._context = context
        self._handshake_seconds = handshake_seconds
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._resuming: asyncio.TimerHandle | None = None

    @property
    def opening(self) -> int:
        """Connections that are accepted and not yet a client's to use."""
        return len(self._opening)

    def start(self) -> None:
        """Begin to accept."""
        self._resuming = None
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def stop(self) -> None:
        """Accept nothing more; what is in the kernel's queue is left to those who share the socket."""
        if self._resuming is not None:
            self._resuming.cancel()
        self._loop.remove_reader(self._listening.fileno())

    async def close(self) -> None:
        """Give up the handshakes that are under way."""
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                connection, address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                self._clients.cut(Cut.DESCRIPTORS)
                self.stop()
                self._resuming = self._loop.call_later(EXHAUSTED_PAUSE, self.start)
                return
            source = self._clients.enter(address[0])
            if source is None:
                connection.close()
                continue
            connection.setblocking(False)
            task = self._loop.create_task(self._open(connection, source))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket, source: str) -> None:
        client = self._server.connection(partial(self._clients.leave, source))
        context = self._context()
        try:
            await self._loop.connect_accepted_socket(
                lambda: client,
                connection,
                ssl=context,
                ssl_handshake_timeout=self._handshake_seconds if context is not None else None,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS if context is not None else None,
            )
        except (OSError, TimeoutError):
            # ssl.SSLError is an OSError. Whatever it was, it was the client's side of it.
            self._clients.cut(Cut.HANDSHAKE)
        finally:
            if not client.made:
                connection.close()
                self._clients.leave(source)
