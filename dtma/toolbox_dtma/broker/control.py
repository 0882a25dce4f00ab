"""The broker's end of the socket to DTMA: sessions are asked for, given with a stream or an address, and ended
(design §6)."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable

from pydantic import ValidationError

from toolbox_dtma.broker.session import Owner
from toolbox_dtma.link.broker import (
    MAX_PACKET_BYTES,
    TO_BROKER,
    AnyFromBroker,
    BrokerPing,
    BrokerPong,
    BrokerReady,
    CloseSession,
    Closing,
    OpenSession,
    Refused,
    SessionEnded,
    SessionOpened,
    SessionRefused,
)

OPEN_SECONDS = 60.0
MAX_OPENING = 256
"""Sessions that are asked for at a time."""
FULL_RETRY_SECONDS = 5.0

Opened = tuple[SessionOpened, socket.socket | None]
"""With the stream of its process, where it has one."""


class NoSession(Exception):
    """There is no session for the time being, or none at all."""

    def __init__(self, why: Refused, message: str, retry_seconds: float | None = None):
        super().__init__(message)
        self.why = why
        self.message = message
        self.retry_seconds = retry_seconds


class ControlBroken(Exception):
    """DTMA sent what is no message of ours: this process must end, so that DTMA starts one that understands it."""


class Control:
    """Sends without waiting; packets are whole, and what the kernel does not take now waits here."""

    def __init__(self, connection: socket.socket, *, ended: Callable[[SessionEnded], None]):
        """`ended` runs in the event loop's thread. The socket is a SOCK_SEQPACKET one."""
        connection.setblocking(False)
        self._connection = connection
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._opening: dict[int, asyncio.Future[Opened]] = {}
        self._unsent: deque[bytes] = deque()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        """Done once DTMA has closed its end, with `ControlBroken` where it is to blame."""
        self._loop.add_reader(connection.fileno(), self._readable)

    def ready(self) -> None:
        """Tell DTMA that the socket answers."""
        self._send(BrokerReady(pid=os.getpid()))

    async def open(self, instance: str, owner: Owner) -> Opened:
        """A session's name, and its stream or where its server is. Raises `NoSession`."""
        if len(self._opening) >= MAX_OPENING:
            raise NoSession(Refused.FULL, "Too many sessions are being started now", FULL_RETRY_SECONDS)
        number = next(self._numbers)
        future: asyncio.Future[Opened] = self._loop.create_future()
        self._opening[number] = future
        asked = OpenSession(
            request=number,
            instance=instance,
            connection=owner.connection,
            ticket=owner.ticket,
            route=owner.route,
        )
        self._send(asked)
        opened: Opened | None = None
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                opened = await future
            return opened
        except TimeoutError:
            raise NoSession(Refused.FAILED, "The server was not started in time") from None
        finally:
            del self._opening[number]
            # It may have come in the moment in which the wait was given up; what comes later is met by `_obey`.
            if opened is None and future.done() and not future.cancelled() and future.exception() is None:
                self._give_back(*future.result())

    def close_session(self, name: str, why: Closing) -> None:
        """DTMA may remove the process."""
        self._send(CloseSession(session=name, why=why))

    def close(self) -> None:
        """Listen no more."""
        self._loop.remove_reader(self._connection.fileno())
        self._loop.remove_writer(self._connection.fileno())
        self._connection.close()

    def _send(self, message: AnyFromBroker) -> None:
        self._unsent.append(message.model_dump_json().encode())
        if len(self._unsent) == 1:
            self._writable()

    def _writable(self) -> None:
        try:
            while self._unsent:
                self._connection.send(self._unsent[0])
                self._unsent.popleft()
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._connection.fileno(), self._writable)
            return
        except OSError:
            # DTMA has ended; the reading side meets the same.
            self._unsent.clear()
        self._loop.remove_writer(self._connection.fileno())

    def _readable(self) -> None:
        try:
            packet, descriptors, flags, _ = socket.recv_fds(
                self._connection, MAX_PACKET_BYTES, 4, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            packet, descriptors, flags = b"", [], 0
        sockets = [socket.socket(fileno=each) for each in descriptors]
        if not packet:
            self._lose(None)
            return
        try:
            if flags & socket.MSG_TRUNC:
                raise ControlBroken("a packet is too large")
            self._obey(packet, sockets)
        except (ValidationError, ControlBroken) as error:
            self._lose(ControlBroken(f"not a message of DTMA's: {type(error).__name__}"))
        finally:
            for each in sockets:
                each.close()

    def _obey(self, packet: bytes, sockets: list[socket.socket]) -> None:
        match TO_BROKER.validate_json(packet):
            case SessionOpened() as opened:
                future = self._opening.get(opened.request)
                if len(sockets) != (opened.upstream is None):
                    # It got lost on its way: this process has no descriptor left.
                    self.close_session(opened.session, Closing.CLIENT)
                    _fail(future, NoSession(Refused.FAILED, "The server's stream could not be passed on"))
                elif future is None or future.done():
                    self.close_session(opened.session, Closing.CLIENT)
                else:
                    future.set_result((opened, sockets.pop() if sockets else None))
            case SessionRefused() as refused:
                _fail(
                    self._opening.get(refused.request), NoSession(refused.why, refused.message, refused.retry_seconds)
                )
            case SessionEnded() as ended:
                self._ended(ended)
            case BrokerPing():
                self._send(BrokerPong())

    def _give_back(self, opened: SessionOpened, connection: socket.socket | None) -> None:
        if connection is not None:
            connection.close()
        self.close_session(opened.session, Closing.CLIENT)

    def _lose(self, error: ControlBroken | None) -> None:
        self._loop.remove_reader(self._connection.fileno())
        if self.lost.done():
            return
        if error is None:
            self.lost.set_result(None)
        else:
            self.lost.set_exception(error)


def _fail(future: asyncio.Future[Opened] | None, error: NoSession) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
